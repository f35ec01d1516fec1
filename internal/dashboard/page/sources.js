// Sources: whether each can be used, its last arrival and rate, its rejected requests, and what to enter at its
// provider.

import { failureNotice, post, query, read, Refresher } from './api.js';
import { ask, badge, copyButton, fill, foreign, h, icon, toast } from './dom.js';
import { sourceForm, webhookURL } from './newsource.js';
import { age, coarse, count, counted, now, short } from './format.js';
import { eventLink } from './search.js';

const sample = 50; // newest events from which a source's rate is computed

export function sources(app) {
	const heading = h('h1', { tabindex: '-1' }, 'Sources');
	const notice = h('div', { class: 'notice-space' });
	const cards = h('div', { class: 'source-cards' });
	const place = h('div', { class: 'notice-space' });
	const add = h(
		'button',
		{
			type: 'button',
			class: 'head-button',
			id: 'source-add',
			'aria-expanded': 'false',
			click: () => openForm(!place.firstChild),
		},
		icon('plus'),
		'Add a source',
	);
	function openForm(open) {
		add.setAttribute('aria-expanded', String(open));
		if (!open) {
			fill(place);
			add.focus();
			return;
		}
		const form = sourceForm(
			() => openForm(false),
			() => {
				openForm(false);
				refresher.now();
			},
		);
		fill(place, form);
		form.querySelector('select').focus();
	}
	const element = h(
		'div',
		{ class: 'view' },
		h('div', { class: 'list-head' }, heading, add),
		h('p', { class: 'lead' }, 'A source is the settings for one sender. Each id is stored once within its source.'),
		place,
		notice,
		cards,
	);
	const drawn = new Map();
	let all = null;
	let failure = null;
	const rates = new Map();

	const refresher = new Refresher(async (signal) => {
		try {
			const { data } = await read('api/sources', signal);
			all = [...data.filter((s) => s.source === 'default'), ...data.filter((s) => s.source !== 'default')];
			failure = null;
		} catch (error) {
			if (!signal.aborted) failure = error;
			requestAnimationFrame(draw);
			throw error;
		}
		requestAnimationFrame(draw);
		for (const s of all) {
			if (!s.last_arrival_at) continue;
			try {
				const { data, next } = await read(`api/events${query({ source: s.source, limit: sample })}`, signal);
				rates.set(s.source, rateOf(data, next));
			} catch (error) {
				if (signal.aborted) throw error;
				rates.delete(s.source);
			}
			requestAnimationFrame(draw);
		}
	}, 3000);

	function draw() {
		fill(notice, failure ? failureNotice(failure, 0, () => refresher.now()) : null);
		if (!all) return;
		for (const [name, card] of drawn) {
			if (all.some((s) => s.source === name)) continue;
			card.element.remove();
			drawn.delete(name);
		}
		for (const s of all) {
			let card = drawn.get(s.source);
			if (!card) {
				card = sourceCard(s.source, () => refresher.now());
				drawn.set(s.source, card);
				cards.append(card.element);
			}
			card.set(s, rates.get(s.source));
		}
	}

	const stopListening = app.live.listen(() => refresher.request());
	refresher.request();
	return {
		element,
		heading,
		title: 'Sources',
		update() {},
		leave() {
			stopListening();
			refresher.stop();
		},
	};
}

// rateOf says how fast the newest events came.
function rateOf(rows, next) {
	if (!rows.length) return null;
	const seconds = Math.max(0.001, (now() - Date.parse(rows[rows.length - 1].created_at)) / 1000);
	if (!next && rows.length < sample) return `${count(rows.length)} in all`;
	const perSecond = rows.length / seconds;
	const rate =
		perSecond >= 1
			? `${short(perSecond)} a second`
			: perSecond * 60 >= 1
				? `${short(perSecond * 60)} a minute`
				: `${short(perSecond * 3600)} an hour`;
	return `${rate}; the newest ${count(rows.length)} within ${coarse(seconds)}`;
}

function sourceCard(source, changed) {
	const url = webhookURL(source);
	const label = (words) => `${words} of ${source}`;
	const state = h('span', {});
	const last = h('dd', {}, '—');
	const rate = h('dd', {}, '—');
	const rejected = h('dd', {}, '—');
	const problems = h('div', {});
	const steps = h('div', {});
	const actions = h('div', { class: 'actions' });
	const said = h('p', { class: 'said', role: 'status' });
	const element = h(
		'section',
		{ class: 'card source', 'data-source': source },
		h(
			'h2',
			{},
			foreign(source),
			' ',
			state,
			' ',
			h('span', { class: 'aside' }, h('a', { href: `#/events${query({ source })}` }, 'events')),
		),
		problems,
		h(
			'dl',
			{ class: 'facts' },
			h('dt', {}, 'last arrival'),
			last,
			h('dt', {}, 'events'),
			rate,
			h('dt', {}, 'rejected'),
			rejected,
		),
		h('h3', {}, 'Address ', copyButton(url)),
		h('pre', { class: 'code-block wrap', tabindex: '0', role: 'region', 'aria-label': label('Address') }, url),
		steps,
		actions,
		said,
	);

	async function act(button, path, done) {
		button.disabled = true;
		try {
			done((await post(`api/sources/${encodeURIComponent(source)}/${path}`)).data);
		} catch (error) {
			toast(error.message, 'bad');
		}
		button.disabled = false;
		changed();
	}
	async function sample(e) {
		const button = e.currentTarget;
		const yes = await ask({
			title: ['Send a sample to ', foreign(source), '?'],
			about: ['It is an event like any other: it is stored, audited and delivered to the real destination.'],
			go: 'Send',
			sign: 'send',
		});
		if (yes === null) return;
		act(button, 'sample', ({ status, answer }) => {
			fill(
				said,
				answer?.event_id
					? [
							badge(answer.status),
							' ',
							h('a', { href: eventLink(answer.event_id, source) }, foreign(answer.event_id, { limit: 80 })),
						]
					: [
							h('span', { class: 'code' }, String(status)),
							' ',
							foreign(answer?.detail ?? answer?.[0]?.status ?? '', { limit: 300 }),
						],
			);
		});
	}
	async function enable(e) {
		const button = e.currentTarget;
		const disabled = element.dataset.state === 'disabled';
		if (!disabled) {
			const yes = await ask({
				title: ['Disable ', foreign(source), '?'],
				about: [
					'Its requests get 503 until somebody enables it. Most providers send them again, for hours or days.',
					'Spine keeps what comes meanwhile among the rejected requests, as far as there is room.',
				],
				go: 'Disable',
				sign: 'pause',
			});
			if (yes === null) return;
		}
		act(button, disabled ? 'enable' : 'disable', () =>
			toast(disabled ? `The source ${source} is enabled.` : `The source ${source} is disabled: its requests get 503.`),
		);
	}

	return {
		element,
		set(s, words) {
			if (last.dataset.at !== String(s.last_arrival_at)) {
				last.dataset.at = String(s.last_arrival_at);
				fill(last, s.last_arrival_at ? age(s.last_arrival_at) : 'nothing yet');
			}
			const text = words ?? (s.last_arrival_at ? '—' : 'nothing yet');
			if (rate.textContent !== text) rate.textContent = text;
			const causes = Object.entries(s.rejected ?? {}).sort((a, b) => b[1] - a[1]);
			if (rejected.dataset.sign !== JSON.stringify(causes)) {
				rejected.dataset.sign = JSON.stringify(causes);
				fill(
					rejected,
					causes.length
						? causes.map(([cause, n], i) => [
								i ? ', ' : '',
								h(
									'a',
									{ href: `#/rejected${query({ source, cause, range: '24h' })}` },
									`${count(n)}× ${cause.replaceAll('_', ' ')}`,
								),
							])
						: 'none',
					h('span', { class: 'muted' }, ' in 24 hours'),
				);
			}
			const sign = JSON.stringify([s.state, s.problems, s.steps]);
			if (
				element.dataset.sign === sign ||
				(actions.contains(document.activeElement) && element.dataset.state === s.state)
			)
				return;
			element.dataset.sign = sign;
			element.dataset.state = s.state;
			const [tone, shape, what] = {
				open: ['warn', 'alert', 'open to anyone'],
				verified: ['good', 'check', 'verified'],
				closed: ['wait', 'pause', 'closed'],
				disabled: ['wait', 'pause', 'disabled'],
				broken: ['bad', 'cross', 'broken'],
			}[s.state] ?? ['wait', 'clock', 'not read yet'];
			fill(state, h('span', { class: `badge ${tone}` }, icon(shape), what));
			fill(
				problems,
				s.problems?.length
					? h(
							'div',
							{ class: 'notice bad' },
							icon('alert'),
							h(
								'div',
								{},
								h(
									'p',
									{},
									h(
										'strong',
										{},
										s.state === 'broken'
											? 'It cannot be used. Its requests get 503 and are kept: replay them after you have mended it.'
											: 'Look at this:',
									),
								),
								s.problems.map((p) => h('p', {}, foreign(p, { limit: 300 }))),
							),
						)
					: null,
			);
			fill(
				steps,
				s.steps?.length
					? h(
							'details',
							{},
							h('summary', {}, `What to enter at the provider, in ${counted(s.steps.length, 'step')}`),
							h(
								'ol',
								{ class: 'steps' },
								s.steps.map((t) => h('li', {}, foreign(t.replace(/https:\/\/YOUR-HOST[^\s;,]*/, url), { limit: 500 }))),
							),
						)
					: null,
			);
			fill(
				actions,
				h(
					'button',
					{ type: 'button', disabled: s.state !== 'open' && s.state !== 'verified', click: sample },
					icon('send'),
					s.state === 'open' ? 'Send a sample' : 'Send a signed sample',
				),
				source === 'default' ? h('a', { class: 'button', href: '#/test' }, icon('flask'), 'Test desk') : null,
				h(
					'button',
					{ type: 'button', class: 'quiet', click: enable },
					icon(s.state === 'disabled' ? 'run' : 'pause'),
					s.state === 'disabled' ? 'Enable' : 'Disable',
				),
			);
		},
	};
}
