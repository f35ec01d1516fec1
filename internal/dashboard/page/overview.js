// The overview: the state in one sentence, what waits, rates and latency, and the latest steps.

import { failureNotice, post, query, read, Refresher } from './api.js';
import { Chart } from './charts.js';
import { ask, fill, foreign, h, icon, say, shortName, toast } from './dom.js';
import { age, coarse, count, counted, now, rangeNames, rate, setNow, short, span, time, unknown } from './format.js';
import { eventLink } from './search.js';
import { depths, due, outcome, sentence, toneOf, verdict } from './words.js';

const steps = 12; // rows of the feed
const oldDepth = 20; // s after which the page says how old a depth sample is
const recent = 30; // s over which the present rates are computed

export function overview(app, parameters) {
	let range = rangeNames[parameters.get('range')] ? parameters.get('range') : '15m';
	let last = null;
	let failure = null;
	let feed = null;
	let readAt = 0;

	const heading = h('h1', { class: 'visually-hidden', tabindex: '-1' }, 'Overview');
	const state = h('p', { class: 'verdict', id: 'verdict' });
	const asOf = h('p', { class: 'as-of' });
	const choose = h(
		'div',
		{ class: 'segments', role: 'radiogroup', 'aria-label': 'Range of the charts' },
		Object.keys(rangeNames).map((name) =>
			h(
				'label',
				{ class: 'segment', title: rangeNames[name] },
				h('input', {
					type: 'radio',
					name: 'range',
					value: name,
					'aria-label': rangeNames[name],
					change: () => {
						app.replace('', { range: name });
						pick(name);
					},
				}),
				h('span', {}, name),
			),
		),
	);
	const notice = h('div', { class: 'notice-space' });
	const tiles = {
		pending: tile('Waiting', 'clock', '#/events?status=pending'),
		processing: tile('In delivery', 'run', '#/events?status=processing'),
		failed: tile('To be retried', 'retry', '#/events?status=failed'),
		dead: tile('Dead letters', 'dead', '#/dead'),
		in: tile('Coming in', 'inbox', '#/events'),
		out: tile('Delivered', 'send', '#/attempts?outcome=success'),
		latency: tile('Latency p95', 'check', '#/attempts'),
	};
	const charts = {
		rates: new Chart({
			title: 'In and out',
			unit: 'events a second',
			show: rate,
			lines: [
				{ label: 'received', colour: 'c-accent', fill: true },
				{ label: 'delivered', colour: 'c-good' },
				{ label: 'failed attempts', colour: 'c-bad' },
			],
		}),
		latency: new Chart({
			title: 'Delivery latency',
			unit: 'from stored to delivered',
			sparse: true,
			show: (v) => span(v / 1000),
			lines: [
				{ label: 'p50', colour: 'c-good' },
				{ label: 'p95', colour: 'c-accent' },
				{ label: 'p99', colour: 'c-warn' },
			],
		}),
		depth: new Chart({
			title: 'Not delivered yet',
			unit: 'events',
			show: short,
			whole: true,
			lines: [
				{ label: 'waiting', colour: 'c-accent', fill: true },
				{ label: 'in delivery', colour: 'c-good' },
				{ label: 'to be retried', colour: 'c-warn' },
				{ label: 'dead letters', colour: 'c-bad' },
			],
		}),
		oldest: new Chart({
			title: 'Oldest waiting',
			unit: 'how long it has been due',
			show: span,
			duration: true,
			lines: [{ label: 'oldest', colour: 'c-accent', fill: true }],
		}),
	};
	const sources = h('tbody', {});
	const destinations = h('tbody', {});
	const latest = h('ol', { class: 'feed', id: 'feed' });
	const figures = h(
		'div',
		{ class: 'figures' },
		h(
			'div',
			{ class: 'tiles' },
			Object.values(tiles).map((t) => t.element),
		),
		h(
			'div',
			{ class: 'charts' },
			Object.values(charts).map((c) => c.element),
		),
	);
	const element = h(
		'div',
		{ class: 'view overview' },
		heading,
		h('div', { class: 'headline' }, h('div', {}, state, asOf), choose),
		notice,
		figures,
		h(
			'div',
			{ class: 'columns' },
			h(
				'section',
				{ class: 'card', 'aria-labelledby': 'h-feed' },
				h('h2', { id: 'h-feed' }, 'Latest steps ', h('a', { class: 'aside', href: '#/audit' }, 'all')),
				latest,
			),
			h(
				'div',
				{ class: 'stack' },
				h(
					'section',
					{ class: 'card', 'aria-labelledby': 'h-destinations' },
					h('h2', { id: 'h-destinations' }, 'Destinations'),
					h(
						'table',
						{ class: 'plain' },
						h('caption', { class: 'visually-hidden' }, 'Events that are not delivered to each destination yet'),
						h(
							'thead',
							{},
							h(
								'tr',
								{},
								h('th', { scope: 'col' }, 'destination'),
								h('th', { scope: 'col', class: 'number' }, 'not delivered'),
								h('th', { scope: 'col', class: 'number' }, 'dead'),
								h('th', { scope: 'col' }, 'state'),
							),
						),
						destinations,
					),
				),
				h(
					'section',
					{ class: 'card', 'aria-labelledby': 'h-sources' },
					h('h2', { id: 'h-sources' }, 'Sources ', h('a', { class: 'aside', href: '#/sources' }, 'how to send')),
					h(
						'table',
						{ class: 'plain' },
						h('caption', { class: 'visually-hidden' }, 'Last arrival from each source'),
						h(
							'thead',
							{},
							h(
								'tr',
								{},
								['source', 'last arrival', 'state'].map((title) => h('th', { scope: 'col' }, title)),
							),
						),
						sources,
					),
				),
			),
		),
	);
	const skeleton = setTimeout(() => {
		if (!last && !failure) element.classList.add('loading');
	}, 150);

	const numbers = new Refresher(async (signal) => {
		try {
			const { data } = await read(`api/overview${query({ range })}`, signal);
			setNow(data.at);
			last = data;
			failure = null;
			readAt = now();
		} catch (error) {
			if (!signal.aborted) failure = error;
			requestAnimationFrame(draw);
			throw error;
		}
		requestAnimationFrame(draw);
	});
	const history = new Refresher(async (signal) => {
		const { data } = await read(`api/audit${query({ limit: steps })}`, signal);
		feed = data;
		requestAnimationFrame(drawFeed);
	});

	function pick(name) {
		range = name;
		check();
		numbers.now();
	}
	function check() {
		for (const input of choose.querySelectorAll('input')) input.checked = input.value === range;
	}

	function draw() {
		clearTimeout(skeleton);
		element.classList.remove('loading');
		element.classList.toggle('stale', Boolean(failure) && Boolean(last));
		drawState();
		fill(notice, failure ? failureNotice(failure, readAt, () => numbers.now()) : null);
		if (last) {
			drawTiles();
			drawCharts();
			drawTables();
		}
	}

	function drawState() {
		const v = last ? verdict(last) : { tone: 'wait', sentence: failure ? 'The state is not known.' : 'Loading…' };
		const sign = { good: 'check', wait: 'clock', warn: 'pause', bad: 'alert' }[failure && !last ? 'bad' : v.tone];
		const text = failure && last ? `${v.sentence} That was ${coarse((now() - readAt) / 1000)} ago.` : v.sentence;
		const tone = `verdict ${failure ? 'wait' : v.tone}`;
		if (state.className !== tone) state.className = tone;
		if (state.dataset.text === text && state.dataset.sign === sign) return;
		state.dataset.text = text;
		// A text that only counts on is not spoken again.
		if (state.dataset.sign && state.dataset.tone !== tone) say(text);
		state.dataset.tone = tone;
		state.dataset.sign = sign;
		fill(state, icon(sign), h('span', {}, text));
	}

	function drawTiles() {
		const d = depths(last);
		const at = Date.parse(last.depth?.at ?? '');
		const lag = (now() - at) / 1000;
		const waitFor = (n, words) => (n === null ? 'not known' : n === 0 ? 'none' : words);
		tiles.pending.set(count(d.pending), waitFor(d.pending, due(last)));
		tiles.processing.set(count(d.processing), waitFor(d.processing, 'under way'));
		const next = Math.min(
			...(last.depth?.rows ?? [])
				.filter((r) => r.status === 'failed' && r.next_attempt_at)
				.map((r) => Date.parse(r.next_attempt_at)),
		);
		tiles.failed.set(
			count(d.failed),
			waitFor(
				d.failed,
				Number.isFinite(next) ? (next > now() + 500 ? `next in ${coarse((next - now()) / 1000)}` : 'next is due') : '',
			),
		);
		tiles.dead.set(count(d.dead), waitFor(d.dead, 'need you'), d.dead ? 'bad' : '');
		const present = recently(last);
		const over = present.seconds ? `a second, last ${coarse(present.seconds)}` : 'not known';
		tiles.in.set(rate(present.received), over);
		tiles.out.set(rate(present.delivered), over);
		tiles.latency.set(
			present.p95 === null ? unknown : span(present.p95 / 1000),
			present.p95 === null ? (present.seconds ? 'nothing delivered' : 'not known') : `p99 ${span(present.p99 / 1000)}`,
		);
		const notes = [];
		if (Number.isFinite(lag) && lag > oldDepth) notes.push(`The queue was counted ${coarse(lag)} ago.`);
		const covered = Date.parse(last.covered_to ?? '');
		if (!last.covered_to) notes.push('Rates and latency are not known yet.');
		else if ((now() - covered) / 1000 > Math.max(60, 3 * last.step_seconds))
			notes.push(`Rates and latency are as of ${coarse((now() - covered) / 1000)} ago.`);
		asOf.textContent = notes.join(' ');
	}

	function drawCharts() {
		const s = last.series ?? {};
		const at = s.at ?? [];
		const none = at.map(() => null);
		const column = (name) => (Array.isArray(s[name]) && s[name].length === at.length ? s[name] : none);
		// The last step is still under way: its counts cover a part of it.
		const end = Date.parse(last.covered_to ?? last.at) / 1000;
		const perSecond = (name) =>
			column(name).map((v, i) => {
				if (v === null) return null;
				const seconds = i === at.length - 1 ? Math.min(last.step_seconds, end - at[i]) : last.step_seconds;
				return i === at.length - 1 && seconds < last.step_seconds / 2 ? null : v / seconds;
			});
		// The present values are those of the tiles.
		const present = recently(last);
		const d = depths(last);
		charts.rates.set(
			[at, perSecond('received'), perSecond('delivered'), perSecond('attempts_failed')],
			[present.received, present.delivered, present.failed],
		);
		charts.latency.set(
			[at, column('latency_p50_ms'), column('latency_p95_ms'), column('latency_p99_ms')],
			[present.p50, present.p95, present.p99],
		);
		charts.depth.set(
			[at, column('pending'), column('processing'), column('failed'), column('dead')],
			[d.pending, d.processing, d.failed, d.dead],
		);
		const oldest = last.depth?.at ? (last.oldest_ready_seconds ?? null) : null;
		charts.oldest.set([at, column('oldest_ready_seconds')], [oldest]);
	}

	function drawTables() {
		const byDestination = new Map();
		for (const name of app.names().destinations) byDestination.set(name, { waiting: 0, dead: 0 });
		for (const p of last.paused ?? []) byDestination.set(p.destination, { waiting: 0, dead: 0, paused: p });
		const known = Boolean(last.depth?.at);
		for (const r of last.depth?.rows ?? []) {
			const d = byDestination.get(r.destination) ?? { waiting: 0, dead: 0 };
			if (r.status === 'dead') d.dead += r.count;
			else d.waiting += r.count;
			byDestination.set(r.destination, d);
		}
		// A row that has not changed keeps its button, and with it the focus.
		const drawn = new Map([...destinations.children].map((tr) => [tr.dataset.sign, tr]));
		destinations.replaceChildren(
			...[...byDestination].map(([name, d]) => {
				const sign = JSON.stringify([name, d, known]);
				return drawn.get(sign) ?? destinationRow(name, d, known, sign, () => numbers.now());
			}),
		);
		const list = [...(last.sources ?? [])].sort(
			(a, b) =>
				(b.state === 'broken') - (a.state === 'broken') ||
				(Date.parse(b.last_arrival_at ?? '') || 0) - (Date.parse(a.last_arrival_at ?? '') || 0),
		);
		fill(
			sources,
			list.length
				? list
						.slice(0, 8)
						.map((s) =>
							h(
								'tr',
								{},
								h(
									'th',
									{ scope: 'row' },
									h('a', { href: `#/events${query({ source: s.source })}` }, foreign(s.source)),
								),
								h('td', {}, s.last_arrival_at ? age(s.last_arrival_at) : 'nothing yet'),
								h('td', {}, sourceBadge(s.state)),
							),
						)
				: h('tr', {}, h('td', { colspan: '3', class: 'none' }, 'No source has sent anything yet.')),
		);
	}

	function drawFeed() {
		if (!feed) return;
		if (!feed.length) {
			return fill(
				latest,
				h(
					'li',
					{ class: 'empty' },
					h('p', {}, 'Nothing has happened yet.'),
					h('p', {}, h('a', { class: 'button', href: '#/test' }, 'Send a first webhook')),
				),
			);
		}
		const known = new Map([...latest.children].map((li) => [li.dataset.key, li]));
		latest.replaceChildren(...feed.map((row) => known.get(String(row.id)) ?? feedRow(row, known.size > 0)));
	}

	const stopListening = app.live.listen((message) => {
		numbers.request();
		if (message.kind === 'audit' && feed) {
			const ids = new Set(feed.map((r) => r.id));
			// Live steps are merged at once. At a high rate the list is read again.
			feed = [...message.rows.filter((r) => !ids.has(r.id)), ...feed].sort((a, b) => b.id - a.id).slice(0, steps);
			requestAnimationFrame(drawFeed);
			if (message.rows.length > steps) history.request();
		} else {
			history.request();
		}
	});
	// Time passes even if nothing happens: ages count on, and charts move on by their step.
	const timer = setInterval(() => {
		if (document.hidden || !last) return;
		drawState();
		drawTiles();
		if (now() - readAt > 5000) numbers.request();
	}, 1000);

	check();
	numbers.request();
	history.request();
	app.learn().then(() => requestAnimationFrame(draw));
	return {
		element,
		heading,
		title: 'Overview',
		update(p) {
			const wanted = rangeNames[p.get('range')] ? p.get('range') : '15m';
			if (wanted !== range) pick(wanted);
		},
		leave() {
			clearInterval(timer);
			clearTimeout(skeleton);
			stopListening();
			numbers.stop();
			history.stop();
			Object.values(charts).forEach((c) => c.remove());
		},
	};
}

// recently sums the newest whole steps that make up at least `recent` seconds.
function recently(o) {
	const s = o.series ?? {};
	const at = s.at ?? [];
	let seconds = 0;
	let received = 0;
	let delivered = 0;
	let failed = 0;
	let from = -1;
	for (let i = at.length - 2; i >= 0 && seconds < recent; i--) {
		if (s.received?.[i] === null || s.received?.[i] === undefined) {
			if (seconds === 0 && at.length - i < 4) continue; // not yet counted in the rollups
			break;
		}
		received += s.received[i];
		delivered += s.delivered?.[i] ?? 0;
		failed += s.attempts_failed?.[i] ?? 0;
		seconds += o.step_seconds;
		from = i;
	}
	const quantile = (name) => {
		if (from < 0) return null;
		for (let i = at.length - 1; i >= from; i--) if (typeof s[name]?.[i] === 'number') return s[name][i];
		return null;
	};
	return {
		seconds,
		received: seconds ? received / seconds : null,
		delivered: seconds ? delivered / seconds : null,
		failed: seconds ? failed / seconds : null,
		p50: quantile('latency_p50_ms'),
		p95: quantile('latency_p95_ms'),
		p99: quantile('latency_p99_ms'),
	};
}

// sourceBadge says that a source takes nothing, and leads to where that is mended.
function sourceBadge(state) {
	if (!state) return null;
	const [tone, sign] = state === 'broken' ? ['bad', 'cross'] : ['wait', 'pause'];
	return h('a', { class: `badge ${tone}`, href: '#/sources' }, icon(sign), state);
}

// destinationRow says what waits for a destination, and pauses or resumes it.
function destinationRow(name, d, known, sign, done) {
	const paused = d.paused;
	return h(
		'tr',
		{ 'data-sign': sign, 'data-destination': name },
		h('th', { scope: 'row' }, foreign(name)),
		h('td', { class: 'number' }, known ? count(d.waiting) : unknown),
		h('td', { class: 'number' }, known ? count(d.dead) : unknown),
		h(
			'td',
			{ class: 'claims' },
			paused
				? h(
						'span',
						{ class: 'badge warn long' },
						icon('pause'),
						'paused since ',
						time(paused.paused_at, { precise: false }),
						paused.paused_by ? [' by ', foreign(paused.paused_by, { limit: 80 })] : null,
						paused.reason ? [': ', foreign(paused.reason, { limit: 300 })] : null,
					)
				: h('span', { class: 'badge good' }, icon('check'), 'open'),
			' ',
			claimsButton(name, d, done),
		),
	);
}

// claimsButton pauses a destination, or resumes it, after the reader has confirmed that.
function claimsButton(name, d, done) {
	const resumes = Boolean(d.paused);
	const button = h(
		'button',
		{ type: 'button', class: 'small', 'data-claims': resumes ? 'resume' : 'pause', click: change },
		icon(resumes ? 'run' : 'pause'),
		resumes ? 'Resume' : 'Pause',
		h('span', { class: 'visually-hidden' }, ` deliveries to ${name}`),
	);
	async function change() {
		const reason = await ask(
			resumes
				? {
						title: ['Resume deliveries to ', foreign(name), '?'],
						about: [
							d.waiting
								? `${counted(d.waiting, 'event')} not delivered yet will go out as they fall due.`
								: 'Nothing waits for it.',
						],
						go: 'Resume',
						sign: 'run',
					}
				: {
						title: ['Pause deliveries to ', foreign(name), '?'],
						about: [
							'Spine goes on storing events, and they wait until somebody resumes. Deliveries under way are finished.',
						],
						field: 'why, for those who ask later (optional)',
						go: 'Pause',
						sign: 'pause',
					},
		);
		if (reason === null) return;
		button.disabled = true;
		try {
			const path = `api/destinations/${encodeURIComponent(name)}/${resumes ? 'resume' : 'pause'}`;
			const { data } = await post(path, resumes ? undefined : JSON.stringify({ reason }));
			const now = `Deliveries to ${name} are ${resumes ? 'resumed' : 'paused'}.`;
			toast(data.changed ? now : `Somebody else did that before. ${now}`);
		} catch (error) {
			toast(`Not ${resumes ? 'resumed' : 'paused'}. ${error.message}`, 'bad');
		}
		button.disabled = false;
		done();
	}
	return button;
}

function tile(label, sign, href) {
	const value = h('span', { class: 'tile-value' }, unknown);
	const more = h('span', { class: 'tile-more' }, '\u00a0');
	const element = h(
		'a',
		{ class: 'tile card', href },
		h('span', { class: 'tile-label' }, icon(sign), label),
		value,
		more,
	);
	return {
		element,
		set(text, words, tone = '') {
			if (value.textContent !== text) value.textContent = text;
			const w = words || '\u00a0';
			if (more.textContent !== w) more.textContent = w;
			element.className = `tile card ${tone}`;
		},
	};
}

function feedRow(row, fresh) {
	const tone = toneOf(row);
	return h(
		'li',
		{ 'data-key': String(row.id), class: fresh ? 'fresh' : '' },
		time(row.timestamp),
		h(
			'span',
			{ class: `mark ${tone}` },
			icon({ good: 'check', bad: 'cross', wait: 'dot' }[tone]),
			h('span', { class: 'visually-hidden' }, row.success),
		),
		h(
			'span',
			{ class: 'feed-text' },
			row.event_id !== null
				? [
						h('a', { class: 'id', href: eventLink(row.event_id, row.source) }, shortName(row.event_id)),
						' ',
					]
				: null,
			h('span', {}, sentence(row.action, row.details)),
			' ',
			outcome(row.details, { limit: 80, brief: true }).map((part) => [part, ' ']),
		),
	);
}
