// The test desk. It sends a webhook as any sender would, again, and changed, and follows it to its end.

import { post, query, read, Refresher } from './api.js';
import { badge, fill, foreign, h, icon, say } from './dom.js';
import { span, time } from './format.js';
import { standing, Timeline } from './event.js';
import { eventLink } from './search.js';

// The mock API does what the member mock_api of a payload asks: one query for each of the first attempts. Other
// destinations ignore it.
const wishes = [
	{ name: '', label: 'Nothing special', asks: null },
	{ name: 'twice', label: 'Fail twice (503), then succeed', asks: ['status=503', 'status=503', 'failure_rate=0'] },
	{ name: 'later', label: 'Ask for a retry after 3 s (429)', asks: ['status=429&retry_after=3', 'failure_rate=0'] },
	{ name: 'cut', label: 'Cut the connection once', asks: ['cut=true', 'failure_rate=0'] },
	{ name: 'slow', label: 'Take 3 s to answer', asks: ['delay=3s&failure_rate=0'] },
	{ name: 'never', label: 'Reject it for good (422): a dead letter', asks: ['status=422'] },
];

const newID = () => `test-${Math.random().toString(36).slice(2, 8)}`;

export function desk(app) {
	const heading = h('h1', { tabindex: '-1' }, 'Test desk');
	const eventID = h('input', {
		type: 'text',
		name: 'event_id',
		value: newID(),
		spellcheck: 'false',
		autocomplete: 'off',
		required: true,
		input: draw,
	});
	const eventType = h('input', {
		type: 'text',
		name: 'event_type',
		value: 'user.created',
		spellcheck: 'false',
		autocomplete: 'off',
		list: 'desk-types',
		required: true,
	});
	const payload = h('textarea', {
		name: 'payload',
		rows: '7',
		spellcheck: 'false',
		autocapitalize: 'off',
		value: '{\n  "user_id": 123,\n  "email": "test@example.com"\n}',
		input: draw,
	});
	const wish = h(
		'select',
		{ name: 'wish' },
		wishes.map((w) => h('option', { value: w.name }, w.label)),
	);
	const problem = h('p', { class: 'field-problem', role: 'alert' });
	const send = h('button', { type: 'submit', class: 'primary', id: 'desk-send' }, icon('send'), 'Send');
	const again = h(
		'button',
		{ type: 'button', id: 'desk-again', disabled: true, click: () => go('again') },
		icon('copy'),
		'Send it again',
	);
	const changed = h(
		'button',
		{ type: 'button', id: 'desk-changed', disabled: true, click: () => go('changed') },
		icon('alert'),
		'Send it changed',
	);
	const other = h('button', { type: 'button', class: 'quiet', id: 'desk-new', click: fresh }, 'New event');
	const answers = h('ol', { class: 'answers', 'aria-label': 'Answers' });
	const followed = h('div', { class: 'followed' });
	let last = null; // the last webhook sent with Send
	let follow = null; // the event that is followed
	let busy = false;

	const form = h(
		'form',
		{
			class: 'card desk-form',
			'aria-labelledby': 'h-send',
			submit: (e) => {
				e.preventDefault();
				go('new');
			},
		},
		h('h2', { id: 'h-send' }, 'Send a webhook'),
		h('label', { class: 'field' }, h('span', { class: 'field-label' }, 'event_id'), eventID),
		h('label', { class: 'field' }, h('span', { class: 'field-label' }, 'event_type'), eventType),
		h(
			'datalist',
			{ id: 'desk-types' },
			['user.created', 'order.paid', 'invoice.failed'].map((v) => h('option', { value: v })),
		),
		h('label', { class: 'field' }, h('span', { class: 'field-label' }, 'payload, a JSON object'), payload),
		problem,
		h('label', { class: 'field' }, h('span', { class: 'field-label' }, 'ask the mock API to'), wish),
		h(
			'p',
			{ class: 'hint' },
			'The mock API of ',
			h('code', {}, 'spine dev'),
			' and compose does what the payload asks in ',
			h('code', {}, 'mock_api'),
			'; other destinations ignore it.',
		),
		h('div', { class: 'actions' }, send, again, changed, other),
	);
	const element = h(
		'div',
		{ class: 'view' },
		heading,
		h(
			'p',
			{ class: 'lead' },
			'What you send here is an event like any other: it is stored, audited and delivered to the real destination.',
		),
		h(
			'div',
			{ class: 'columns desk-columns' },
			form,
			h(
				'div',
				{ class: 'stack' },
				h(
					'section',
					{ class: 'card', 'aria-labelledby': 'h-answers' },
					h('h2', { id: 'h-answers' }, 'What Spine answered'),
					answers,
				),
				h(
					'section',
					{ class: 'card', 'aria-labelledby': 'h-follow' },
					h('h2', { id: 'h-follow' }, 'What happens to it'),
					followed,
				),
			),
		),
	);
	fill(answers, h('li', { class: 'none' }, 'Nothing sent yet.'));
	fill(followed, h('p', { class: 'none' }, 'Send a webhook, and follow it here to its end.'));

	// payloadText is the payload exactly as typed, with the member for the mock API added.
	function payloadText() {
		const text = payload.value.trim();
		const asks = wishes.find((w) => w.name === wish.value)?.asks;
		if (!asks) return text;
		return withMember(text, `"mock_api": ${JSON.stringify(asks)}`);
	}

	// withMember is the text of an object with one more member.
	function withMember(text, member) {
		return /^\{\s*\}$/.test(text) ? `{${member}}` : text.replace(/^\{/, `{${member}, `);
	}

	function draw() {
		let words = '';
		try {
			const value = JSON.parse(payload.value);
			if (value === null || typeof value !== 'object' || Array.isArray(value))
				words = 'It must be a JSON object; Spine will reject this.';
		} catch (error) {
			words = `This is not JSON; Spine will reject it. (${error.message})`;
		}
		if (problem.textContent !== words) problem.textContent = words;
	}

	function fresh() {
		eventID.value = newID();
		last = null;
		again.disabled = true;
		changed.disabled = true;
		eventID.focus();
		eventID.select();
	}

	async function go(how) {
		if (busy) return;
		const now = JSON.stringify(new Date().toISOString());
		const sent =
			how === 'new'
				? { id: eventID.value, type: eventType.value, at: now, payload: payloadText() }
				: { ...last, payload: how === 'changed' ? withMember(last.payload, `"changed_at": ${now}`) : last.payload };
		const body =
			`{"event_id": ${JSON.stringify(sent.id)}, "event_type": ${JSON.stringify(sent.type)}, ` +
			`"occurred_at": ${sent.at}, "payload": ${sent.payload || 'null'}}`;
		busy = true;
		const start = performance.now();
		let result;
		try {
			const { data, status } = await post('webhook', body);
			result = { tone: data.status, code: status, words: data.message, errors: [] };
		} catch (error) {
			result = { tone: 'rejected', code: error.status, words: error.message, errors: error.errors ?? [] };
		}
		busy = false;
		result.seconds = (performance.now() - start) / 1000;
		result.what = { new: 'Sent', again: 'Sent again', changed: 'Sent changed' }[how];
		show(sent, result);
		if (result.tone === 'rejected') return;
		if (how === 'new') last = sent;
		again.disabled = !last;
		changed.disabled = !last;
		watch(sent.id);
	}

	function show(sent, r) {
		if (answers.firstElementChild?.classList.contains('none')) answers.replaceChildren();
		const known = ['accepted', 'deduplicated', 'conflict'].includes(r.tone);
		answers.prepend(
			h(
				'li',
				{ class: 'answer-row fresh', 'data-answer': r.tone },
				h(
					'div',
					{ class: 'answer-head' },
					known
						? badge(r.tone)
						: h('span', { class: 'badge bad' }, icon('cross'), r.code ? `rejected, ${r.code}` : 'no answer'),
					h(
						'span',
						{},
						r.what,
						' ',
						h('a', { class: 'id', href: eventLink(sent.id, known ? 'default' : '') }, foreign(sent.id, { limit: 48 })),
					),
					h('span', { class: 'muted' }, span(r.seconds)),
					time(new Date().toISOString()),
				),
				h('p', {}, foreign(r.words, { limit: 300 })),
				r.errors.length
					? h(
							'ul',
							{},
							r.errors
								.slice(0, 20)
								.map((e) =>
									h(
										'li',
										{},
										h('code', {}, foreign(e.field ?? e.parameter ?? 'body')),
										' ',
										foreign(e.detail ?? '', { limit: 200 }),
									),
								),
						)
					: null,
			),
		);
		while (answers.children.length > 20) answers.lastElementChild.remove();
		say(`${r.what}: ${known ? r.tone : 'rejected'}. ${r.words}`);
	}

	function watch(id) {
		if (follow?.id === id) {
			follow.refresher.request();
			return;
		}
		follow?.refresher.stop();
		const timeline = new Timeline();
		const state = h('div', { class: 'followed-state' });
		const stands = h('div', { class: 'stands' });
		const trouble = h('p', { class: 'muted' });
		let before = '';
		fill(
			followed,
			h(
				'p',
				{ class: 'followed-head' },
				h('a', { class: 'id', href: eventLink(id, 'default') }, foreign(id, { limit: 64 })),
				' ',
				state,
			),
			trouble,
			stands,
			timeline.element,
		);
		const refresher = new Refresher(async (signal) => {
			let data;
			try {
				({ data } = await read(`api/event${query({ event_id: id, source: 'default' })}`, signal));
			} catch (error) {
				if (!signal.aborted) trouble.textContent = error.message;
				throw error;
			}
			trouble.textContent = '';
			requestAnimationFrame(() => {
				if (state.dataset.status !== String(data.status)) {
					state.dataset.status = String(data.status);
					fill(state, data.status ? badge(data.status) : null);
					if (data.status && before) say(`The event is ${data.status}.`);
					before = data.status;
				}
				const now = JSON.stringify(data.processing);
				if (stands.dataset.now !== now && !stands.contains(document.activeElement)) {
					stands.dataset.now = now;
					fill(
						stands,
						data.processing.map((p) => standing(app, p, data, () => refresher.now())),
					);
				}
				timeline.set(data.timeline, data.timeline_truncated);
			});
		}, 300);
		follow = { id, refresher };
		refresher.request();
	}

	const stopListening = app.live.listen((message) => {
		if (!follow) return;
		if (message.kind === 'audit' && !message.rows.some((r) => r.event_id === follow.id)) return;
		follow.refresher.request();
	});
	draw();
	return {
		element,
		heading,
		title: 'Test desk',
		keeps: true,
		update() {},
		rest() {},
		wake() {
			follow?.refresher.request();
		},
		leave() {
			stopListening();
			follow?.refresher.stop();
		},
	};
}
