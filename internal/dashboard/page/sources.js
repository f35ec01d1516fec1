// Sources: whether each can be used, its last arrival and rate, its rejected requests, and what to enter at its
// provider.

import { failureNotice, post, query, read, Refresher } from './api.js';
import { badge, copyButton, fill, foreign, h, icon, toast } from './dom.js';
import { age, coarse, count, counted, now, short } from './format.js';
import { eventLink } from './search.js';

const sample = 50; // newest events from which a source's rate is computed

const webhookURL = (source) =>
	new URL(source === 'default' ? 'webhook' : `webhook/${encodeURIComponent(source)}`, document.baseURI).href;

export function sources(app) {
	const heading = h('h1', { tabindex: '-1' }, 'Sources');
	const notice = h('div', { class: 'notice-space' });
	const cards = h('div', { class: 'source-cards' });
	const element = h(
		'div',
		{ class: 'view' },
		heading,
		h(
			'p',
			{ class: 'lead' },
			'A source is the settings for one sender. Each id is stored once within its source. Add one with ',
			h('code', {}, 'spine source add'),
			' or ',
			h('code', {}, 'spine apply'),
			'.',
		),
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
			h('dt', {}, 'rate'),
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
	function sample(e) {
		act(e.currentTarget, 'sample', ({ status, answer }) => {
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
	function enable(e) {
		const disabled = element.dataset.state === 'disabled';
		act(e.currentTarget, disabled ? 'enable' : 'disable', () =>
			toast(disabled ? 'The source is enabled.' : 'The source is disabled: its requests are rejected.'),
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
								h('a', { href: `#/rejected${query({ source, cause })}` }, `${count(n)} ${cause.replaceAll('_', ' ')}`),
							])
						: 'nothing',
					causes.length ? ' kept within a day' : ' within a day',
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
				h(
					'button',
					{ type: 'button', class: 'quiet', click: enable },
					icon(s.state === 'disabled' ? 'run' : 'pause'),
					s.state === 'disabled' ? 'Enable' : 'Disable',
				),
				source === 'default' ? h('a', { class: 'button quiet', href: '#/test' }, icon('flask'), 'Test desk') : null,
			);
		},
	};
}
