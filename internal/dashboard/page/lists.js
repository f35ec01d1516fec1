// The lists: events, attempts, audit log, dead letters, rejected requests, conflicts. All work alike: filters stand in
// the address, pages follow one another without end, and rows change and arrive while the reader looks.

import { failureNotice, query, read, Refresher } from './api.js';
import { badge, fill, foreign, h, icon, say, shortName, statusWords } from './dom.js';
import { count, local, now, rangeNames, ranges, since, span, time } from './format.js';
import { eventLink, searchBox } from './search.js';
import { detail, knownActions, knownCauses, outcome, rest, sentence, toneOf } from './words.js';
import { acceptButton, replayButton } from './event.js';
import { replayAllButton } from './replay.js';
import { againButton } from './rejected.js';

const pageRows = 50;
const mostRows = 1000; // in the document; for older rows the reader narrows the time
const mostSilent = 5; // pages without a row, after which the reader must ask for more
const windowEvery = 5000; // ms between two reads of all rows that are shown
const other = 'another…\n'; // no value has a new line

// filterNames are the filters that the API knows by the same names.
const filterNames = [
	'status',
	'type',
	'source',
	'destination',
	'outcome',
	'action',
	'success',
	'cause',
	'state',
	'since',
	'until',
];
const statuses = ['pending', 'processing', 'failed', 'dead', 'completed'];
const id = (row) =>
	row.event_id === null || row.event_id === undefined
		? h('span', { class: 'none' }, '—')
		: h('a', { class: 'id', href: eventLink(row.event_id, row.source) }, shortName(row.event_id));
const column = (name, title, value, options = {}) => ({ name, title, value, ...options });
const sourceCell = (row) => foreign(row.source ?? '', { limit: 63 });

const kinds = {
	events: {
		title: 'Events',
		path: 'api/events',
		key: (r) => r.id,
		at: (r) => r.created_at,
		filters: ['id', 'status', 'type', 'source', 'range'],
		columns: [
			column('time', 'stored', (r) => time(r.created_at), { sorted: true }),
			column('id', 'event', id),
			column('status', 'status', (r) => (r.status ? badge(r.status) : h('span', { class: 'muted' }, 'not queued')), {
				of: (r) => r.status,
			}),
			column('type', 'type', (r) => foreign(r.event_type, { limit: 60 })),
			column('source', 'source', sourceCell),
			column('times', 'received', (r) => (r.seen_count === undefined ? '' : `${count(r.seen_count)}×`), {
				of: (r) => r.seen_count,
				number: true,
			}),
			column('long', 'payload', (r) => preview(r)),
		],
		none: ['No event has been stored yet.', h('a', { class: 'button', href: '#/test' }, 'Send a first webhook')],
		// An id is searched by its index. The other filters are applied here, to the few events that were found.
		search: true,
	},
	attempts: {
		title: 'Attempts',
		path: 'api/attempts',
		key: (r) => r.id,
		at: (r) => r.timestamp,
		filters: ['id', 'outcome', 'type', 'source', 'range'],
		columns: [
			column('time', 'time', (r) => time(r.timestamp), { sorted: true }),
			column('id', 'event', id),
			column('status', 'outcome', (r) => badge(r.outcome), { of: (r) => r.outcome }),
			column('times', 'attempt', (r) => count(r.attempt), { number: true }),
			column('code', 'answer', (r) =>
				r.status === null ? h('span', { class: 'muted' }, 'none') : h('span', { class: 'code' }, String(r.status)),
			),
			column('took', 'took', (r) => (r.duration_ms === null ? '' : span(r.duration_ms / 1000)), { number: true }),
			column('source', 'source', sourceCell),
			column('long', 'error, answer', (r) => [
				r.error ? h('span', { class: 'error' }, foreign(r.error, { limit: 120 })) : null,
				' ',
				r.answer ? foreign(r.answer.trim(), { limit: 120 }) : null,
			]),
		],
		none: ['No delivery has been attempted yet.'],
	},
	audit: {
		title: 'Audit',
		path: 'api/audit',
		key: (r) => r.id,
		at: (r) => r.timestamp,
		filters: ['id', 'action', 'success', 'type', 'source', 'range'],
		columns: [
			column('time', 'time', (r) => time(r.timestamp), { sorted: true }),
			column('id', 'event', id),
			column('status', 'outcome', (r) => outcomeBadge(r), { of: (r) => r.success }),
			column('what', 'step', (r) => h('span', {}, sentence(r.action, r.details))),
			column('action', 'action', (r) => h('code', {}, foreign(r.action))),
			column('source', 'source', sourceCell),
			column('long', 'details', (r) => [
				outcome(r.details, { limit: 120 }).map((p) => [p, ' ']),
				rest(r.action, r.details).map(([name, value]) => [
					h('span', { class: 'muted' }, foreign(name), '='),
					detail(value, 120),
					' ',
				]),
			]),
		],
		none: ['No step has been recorded yet.'],
	},
	dead: {
		title: 'Dead letters',
		path: 'api/processing',
		fixed: { status: 'dead' },
		key: (r) => `${r.event} ${r.destination}`,
		at: (r) => r.created_at,
		filters: ['id', 'type', 'source', 'destination', 'range'],
		rangeOf: 'stored',
		all: replayAllButton,
		columns: [
			column('time', 'died', (r) => time(r.updated_at)),
			column('id', 'event', id),
			column('status', 'status', (r) => badge(r.status), { of: (r) => r.status }),
			column('times', 'attempts', (r) => count(r.attempt_count), { number: true }),
			column('source', 'source', sourceCell),
			column('dest', 'destination', (r) => foreign(r.destination)),
			column('long', 'last error', (r) =>
				r.error_message ? h('span', { class: 'error' }, foreign(r.error_message, { limit: 160 })) : '',
			),
			column('do', 'what to do', (r, app) => replayButton(app, r, { small: true }), { of: () => '' }),
		],
		none: [
			'No dead letters.',
			'Events end here once their attempts are used up, or a destination rejects them for good.',
		],
		good: true,
	},
	rejected: {
		title: 'Rejected requests',
		path: 'api/rejected',
		key: (r) => r.id,
		at: (r) => r.at,
		filters: ['source', 'cause', 'state', 'range'],
		columns: [
			column('time', 'came', (r) => time(r.at), { sorted: true }),
			column('id', 'request', (r) =>
				h('a', { class: 'id', href: requestLink(r), title: `${r.method} ${r.target}` }, `#${r.id}`),
			),
			column('status', 'state', (r) => badge(r.state), { of: (r) => r.state }),
			column('code', 'answer', (r) => h('span', { class: 'code' }, String(r.status))),
			column('type', 'cause', (r) => foreign(r.cause.replaceAll('_', ' '), { limit: 60 })),
			column('source', 'source', sourceCell),
			column('dest', 'from', (r) => foreign(r.remote)),
			column('long', 'why', (r) => [
				foreign(r.detail, { limit: 160 }),
				r.event_id ? [' ', id(r)] : null,
				r.state === 'refused' && r.note && r.note !== r.detail ? [' Then: ', foreign(r.note, { limit: 160 })] : null,
			]),
			column('do', 'what to do', remedies, { of: (r) => r.state }),
		],
		none: [
			'Nothing was rejected.',
			'Spine keeps rejected requests for a while. You can replay them after you mended a wrong setting.',
		],
		good: true,
	},
	conflicts: {
		title: 'Conflicts',
		path: 'api/conflicts',
		key: (r) => `${r.source} ${r.event_id} ${r.payload_hash}`,
		at: (r) => r.created_at,
		filters: ['source', 'range'],
		columns: [
			column('time', 'came', (r) => time(r.created_at), { sorted: true }),
			column('id', 'event', id),
			column('source', 'source', sourceCell),
			column('times', 'seen', (r) => `${count(r.seen_count)}×`, { number: true }),
			column('long', 'differences', (r) =>
				r.differences
					? r.differences
							.slice(0, 5)
							.map((d) => [
								h('code', {}, foreign(d.path || '/', { limit: 80 })),
								' ',
								foreign('was' in d ? JSON.stringify(d.was) : 'absent', { limit: 60 }),
								' → ',
								foreign('is' in d ? JSON.stringify(d.is) : 'absent', { limit: 60 }),
								h('br'),
							])
					: (r.not_compared ?? 'they differ only in how they write numbers'),
			),
			column('do', 'what to do', (r) => acceptButton(r), { of: (r) => r.accepted_as }),
		],
		none: [
			'No conflicts.',
			'When another payload comes under a known id, the first stays and the other is kept here as evidence.',
		],
		good: true,
	},
};

// outcomeBadge is the outcome of a step. A tick stands before good news alone.
function outcomeBadge(r) {
	const tone = toneOf(r);
	return h(
		'span',
		{ class: `badge ${tone}`, 'data-status': r.success },
		icon({ good: 'check', bad: 'cross', wait: 'dot' }[tone]),
		foreign(r.success),
	);
}

const requestLink = (r) => `#/request${query({ id: String(r.id) })}`;

// remedies are what a reader can do about a rejected request: mend its source, replay it, or look at it.
function remedies(r) {
	if (r.state === 'taken_in') return '';
	const mend = /^(source_(broken|closed|disabled)|signature|credentials|verify_token|timestamp)/.test(r.cause);
	return h(
		'div',
		{ class: 'remedies' },
		r.body_bytes != null ? null : againButton(r, { small: true }),
		mend ? h('a', { href: '#/sources' }, 'See its source') : h('a', { href: requestLink(r) }, 'See all of it'),
	);
}

function preview(r) {
	if (r.payload === undefined) return '';
	if (r.payload === null)
		return h('span', { class: 'muted' }, 'kept as bytes: ', foreign(r.unqueryable ?? '', { limit: 60 }));
	const text = JSON.stringify(r.payload);
	return h('code', { class: 'preview' }, foreign(text.length > 120 ? `${text.slice(0, 119)}…` : text, { limit: 130 }));
}

// list is the view of one kind of rows.
export function list(app, view, parameters) {
	const kind = kinds[view];
	let filters = readFilters(parameters);
	let rows = [];
	let next = '';
	let lookedBackTo = null;
	let silent = 0; // pages without a row, one after the other
	let fresh = 0; // new rows that are held back while the reader is further down
	let uncounted = false; // there are more new rows than a page has
	let loadedOnce = false;
	let failure = null;
	let readAt = 0;
	let more = null; // the page that is being read
	let drawn = 0;
	let gone = false;
	const elements = new Map();

	const heading = h('h1', { tabindex: '-1' }, kind.title);
	const notice = h('div', { class: 'notice-space' });
	const button = h('button', { type: 'button', class: 'fresh-button', hidden: true, click: top });
	const all = kind.all?.(question, () => refresher.now()) ?? null;
	const body = h('tbody', { role: 'rowgroup' });
	const table = h(
		'table',
		{ class: `rows ${view}`, role: 'table' },
		h('caption', { class: 'visually-hidden' }, `${kind.title}, newest first`),
		h(
			'thead',
			{ role: 'rowgroup' },
			h(
				'tr',
				{ role: 'row' },
				kind.columns.map((c) =>
					h(
						'th',
						{
							scope: 'col',
							role: 'columnheader',
							class: `col-${c.name}${c.number ? ' number' : ''}`,
							'aria-sort': c.sorted ? 'descending' : false,
						},
						c.title,
					),
				),
			),
		),
		body,
	);
	const wait = h(
		'div',
		{ class: 'skeletons', 'aria-hidden': 'true', hidden: true },
		Array.from({ length: 8 }, () => h('div', { class: 'skeleton' })),
	);
	const empty = h('div', { class: 'empty', hidden: true });
	const ending = h('p', { class: 'ending' });
	const further = h(
		'button',
		{
			type: 'button',
			hidden: true,
			click: () => {
				silent = 0;
				loadMore();
			},
		},
		'Load more',
	);
	const foot = h('div', { class: 'foot' }, ending, further);
	const form = h('form', {
		class: 'filters',
		role: 'search',
		'aria-label': 'Filters',
		submit: (e) => e.preventDefault(),
	});
	const element = h(
		'div',
		{ class: `view list list-${view}` },
		h('div', { class: 'list-head' }, heading, button, all),
		form,
		notice,
		h('div', { class: 'card table-card' }, table, wait, empty),
		foot,
	);
	const skeleton = setTimeout(() => {
		if (!loadedOnce && !failure) wait.hidden = false;
	}, 150);

	function readFilters(p) {
		const chosen = {};
		for (const key of ['id', ...filterNames, 'range']) {
			const value = p.get(key);
			if (value) chosen[key] = value;
		}
		return chosen;
	}

	// question is the query, as the API takes it.
	function question(limit) {
		const q = { ...kind.fixed };
		for (const f of filterNames) {
			if (filters[f] && !(f in q)) q[f] = filters[f];
		}
		if (filters.id) q.event_id = filters.id;
		if (ranges[filters.range]) q.since = since(filters.range);
		return { ...q, limit };
	}

	async function ask(limit, signal) {
		if (kind.search && filters.id) {
			const answer = await read(`api/search${query({ q: filters.id })}`, signal);
			const q = question();
			answer.data = answer.data
				.filter(
					(r) =>
						(!q.status || r.status === q.status) &&
						(!q.type || r.event_type === q.type) &&
						(!q.source || r.source === q.source) &&
						(!q.since || r.created_at >= q.since) &&
						(!q.until || r.created_at < q.until),
				)
				.map((r) => ({ id: `${r.source}\n${r.event_id}`, ...r }));
			return { ...answer, next: '', lookedBackTo: null };
		}
		return read(`${kind.path}${query(question(limit))}`, signal);
	}

	// mustNotMove says that the reader is further down, or has the focus in the table. Then no row may move.
	function mustNotMove() {
		return table.getBoundingClientRect().top < -20 || body.contains(document.activeElement);
	}

	const refresher = new Refresher(async (signal) => {
		const whole = rows.length > pageRows && performance.now() - drawn > windowEvery;
		if (whole) drawn = performance.now();
		try {
			const answer = await ask(whole ? Math.min(rows.length, mostRows) : pageRows, signal);
			failure = null;
			readAt = now();
			merge(answer);
			loadedOnce = true;
		} catch (error) {
			if (signal.aborted) throw error;
			failure = error;
			schedule();
			throw error;
		}
		schedule();
		if (rows.length > pageRows && !whole) later();
	});

	// Rows beyond the first page are read again in a while.
	let laterTimer = 0;
	function later() {
		if (!laterTimer)
			laterTimer = setTimeout(() => {
				laterTimer = 0;
				if (!gone) refresher.request();
			}, windowEvery);
	}

	// merge puts the newest rows above the rows that are shown already. If the last of the newest is not among those,
	// there is a gap between the two.
	function merge({ data, next: following, lookedBackTo: backTo }) {
		const key = kind.key;
		const known = new Map(rows.map((r, i) => [key(r), i]));
		const first = !loadedOnce;
		const last = data.length ? known.get(key(data[data.length - 1])) : undefined;
		const gap = following !== '' && last === undefined;
		const newest = new Map(data.map((r) => [key(r), r]));
		if (!first && mustNotMove()) {
			rows = rows
				.filter((r, i) => newest.has(key(r)) || gap || (following !== '' && i > last))
				.map((r) => newest.get(key(r)) ?? r);
			let above = 0;
			for (const r of data) {
				if (known.has(key(r))) break;
				above++;
			}
			if (above !== fresh) {
				if (!fresh && above) say('There are new rows above.');
				fresh = above;
			}
			uncounted = gap && above > 0;
			return;
		}
		fresh = 0;
		if (gap || following === '') {
			rows = data;
			next = following;
			lookedBackTo = backTo;
			silent = 0;
		} else {
			rows = [...data, ...rows.slice(last + 1)];
			if (rows.length > mostRows) cut();
		}
	}

	// cut keeps the newest rows. The others are read again if the reader goes there.
	function cut() {
		rows = rows.slice(0, mostRows);
		next = '';
		lookedBackTo = null;
	}

	async function loadMore() {
		if (more || !next || gone) return;
		const abort = new AbortController();
		more = abort;
		draw();
		try {
			const answer = await read(`${kind.path}?${next}`, abort.signal);
			const have = new Set(rows.map(kind.key));
			const added = answer.data.filter((r) => !have.has(kind.key(r)));
			rows = [...rows, ...added];
			next = answer.next;
			lookedBackTo = answer.lookedBackTo;
			silent = added.length ? 0 : silent + 1;
			failure = null;
		} catch (error) {
			if (abort.signal.aborted) return;
			failure = error;
			silent = mostSilent; // the reader may try again with the button
		} finally {
			if (more === abort) more = null;
		}
		schedule();
	}

	function top() {
		document.activeElement?.blur?.();
		window.scrollTo({ top: 0 });
		fresh = 0;
		refresher.now();
		heading.focus({ preventScroll: true });
	}

	let frame = 0;
	function schedule() {
		if (!frame && !gone)
			frame = requestAnimationFrame(() => {
				frame = 0;
				draw();
			});
	}

	function draw() {
		if (gone) return;
		clearTimeout(skeleton);
		wait.hidden = loadedOnce || Boolean(failure);
		element.classList.toggle('stale', Boolean(failure) && loadedOnce);
		fill(notice, failure ? failureNotice(failure, loadedOnce ? readAt : 0, () => refresher.now()) : null);
		drawRows();
		drawFoot();
		button.hidden = !fresh;
		if (all) all.hidden = !rows.length;
		if (fresh) fill(button, icon('inbox'), uncounted ? `${count(fresh)}+ new` : `${count(fresh)} new`);
	}

	// drawRows changes only what is new: rows and cells keep their elements, and with them the focus.
	function drawRows() {
		const keys = new Set();
		const animate = elements.size > 0;
		let before = body.firstElementChild;
		for (const row of rows) {
			const key = kind.key(row);
			keys.add(key);
			let entry = elements.get(key);
			if (!entry) {
				const tr = h('tr', { role: 'row', class: animate ? 'fresh' : '', 'data-event-id': row.event_id ?? false });
				entry = { tr, signs: [] };
				kind.columns.forEach((c) =>
					tr.append(
						h('td', { role: 'cell', class: `col-${c.name}${c.number ? ' number' : ''}`, 'data-label': c.title }),
					),
				);
				elements.set(key, entry);
			}
			if (entry.row !== row) {
				const text = JSON.stringify(row);
				if (entry.text !== text) {
					kind.columns.forEach((c, i) => {
						const sign = c.of ? String(c.of(row)) : text;
						if (entry.signs[i] === sign) return;
						entry.signs[i] = sign;
						if (!c.of && entry.text !== undefined && entry.tr.children[i].contains(document.activeElement)) return;
						fill(entry.tr.children[i], c.value(row, app));
					});
					entry.text = text;
				}
				entry.row = row;
			}
			if (entry.tr === before) before = before.nextElementSibling;
			else body.insertBefore(entry.tr, before);
		}
		for (const [key, entry] of elements) {
			if (keys.has(key)) continue;
			entry.tr.remove();
			elements.delete(key);
		}
		table.hidden = !rows.length;
		const filtered = Object.keys(filters).length > 0;
		empty.hidden = rows.length > 0 || !loadedOnce || Boolean(next);
		if (!empty.hidden && empty.dataset.filtered !== String(filtered)) {
			empty.dataset.filtered = String(filtered);
			const words = filtered
				? [
						'Nothing matches the filters.',
						h('button', { type: 'button', click: () => app.go(`#/${view}`) }, 'Show all'),
					]
				: kind.none;
			fill(
				empty,
				kind.good && !filtered ? h('p', { class: 'mark good' }, icon('check')) : null,
				words.map((w) => h('p', {}, w)),
			);
		}
	}

	function drawFoot() {
		const shown = rows.length;
		further.hidden = !next || shown >= mostRows;
		further.disabled = Boolean(more);
		further.textContent = more ? 'Loading…' : lookedBackTo && silent >= mostSilent ? 'Look further back' : 'Load more';
		if (!loadedOnce) return fill(ending);
		if (shown >= mostRows) {
			const oldest = kind.at(rows[shown - 1]);
			fill(
				ending,
				`${count(mostRows)} rows are shown. `,
				h(
					'button',
					{
						type: 'button',
						class: 'link',
						click: () => app.go(`#/${view}${query({ ...filters, range: '', until: oldest })}`),
					},
					`Go on before ${local(oldest)}`,
				),
			);
		} else if (next && lookedBackTo) {
			fill(ending, `Looked back to ${local(lookedBackTo)}, nothing more yet.`);
		} else if (next) {
			fill(ending);
		} else if (shown) {
			fill(
				ending,
				kind.search && filters.id
					? `${count(shown)} found; a search finds at most 20.`
					: shown > 10
						? `That is all: ${count(shown)} rows.`
						: '',
			);
		} else {
			fill(ending);
		}
		if (next && !more && silent < mostSilent && shown < mostRows && nearEnd()) loadMore();
	}

	const nearEnd = () => foot.getBoundingClientRect().top < window.innerHeight + 400 && element.isConnected;
	const observer = new IntersectionObserver(
		(entries) => {
			if (entries[0].isIntersecting && silent < mostSilent && rows.length < mostRows) loadMore();
		},
		{ rootMargin: '400px' },
	);
	observer.observe(foot);
	const scrolled = () => {
		if (fresh && !mustNotMove()) refresher.request();
	};
	let stopListening;
	function startListening() {
		const stop = app.live.listen(() => refresher.request());
		window.addEventListener('scroll', scrolled, { passive: true });
		stopListening = () => {
			stop();
			window.removeEventListener('scroll', scrolled);
		};
	}
	startListening();

	// Filters.
	const choices = new Map(); // select → the values that are known
	function drawForm() {
		const options = (all, any) => [
			h('option', { value: '' }, any),
			all.map((v) => h('option', { value: v }, statusWords(v))),
		];
		const select = (key, label, all, any) =>
			field(
				label,
				h('select', { name: key, change: (e) => setFilter({ [key]: e.target.value }) }, options(all, any)),
				key,
			);
		// choice is a field of the values that are known. With "another…" the reader types one that is not among them.
		const choice = (key, label, known) => {
			const select = h('select', {
				name: key,
				change: () => (select.value === other ? type() : setFilter({ [key]: select.value })),
			});
			const input = h('input', {
				type: 'text',
				autocomplete: 'off',
				spellcheck: 'false',
				placeholder: 'exactly',
				'data-other': key,
				blur: () => done(input.value),
				keydown: (e) => {
					if (e.key === 'Enter') done(input.value);
					else if (e.key === 'Escape') done('');
				},
			});
			const holder = h('span', {}, select);
			let typing = false;
			function type() {
				typing = true;
				input.value = '';
				fill(holder, input);
				input.focus();
			}
			function done(value) {
				if (!typing) return;
				typing = false; // taking a field away takes its focus
				fill(holder, select);
				select.value = filters[key] ?? '';
				if (value.trim()) setFilter({ [key]: value.trim() });
			}
			choices.set(select, known);
			return field(label, holder, key);
		};
		const fields = {
			id: () => {
				const box = searchBox({
					label: 'Event id',
					placeholder: kind.search ? 'id, or its beginning' : 'exact id',
					value: filters.id ?? '',
					chosen: (c) =>
						setFilter({ id: c.event_id ?? c.text, ...(c.source && !kind.search ? { source: c.source } : {}) }),
				});
				box.input.addEventListener('search', () => {
					if (!box.input.value) setFilter({ id: '' });
				});
				box.input.addEventListener('change', () => {
					if (!box.input.value) setFilter({ id: '' });
				});
				box.input.name = 'id';
				return h(
					'div',
					{ class: 'field field-id' },
					h('span', { class: 'field-label', 'aria-hidden': 'true' }, 'event'),
					box.element,
				);
			},
			status: () => select('status', 'status', statuses, 'any'),
			outcome: () => select('outcome', 'outcome', ['success', 'failure'], 'any'),
			success: () => select('success', 'outcome', ['success', 'failure', 'pending'], 'any'),
			action: () => select('action', 'action', knownActions, 'any'),
			type: () => choice('type', 'type', () => [...app.names().types, ...rows.map((r) => r.event_type)]),
			source: () => choice('source', 'source', () => app.names().sources),
			destination: () => choice('destination', 'destination', () => app.names().destinations),
			cause: () => choice('cause', 'cause', () => knownCauses),
			state: () => select('state', 'state', ['kept', 'requested', 'taken_in', 'refused'], 'any'),
			range: () => [
				field(
					kind.rangeOf ?? 'time',
					h(
						'select',
						{ name: 'range', change: (e) => rangePicked(e.target.value) },
						h('option', { value: '' }, 'any time'),
						Object.entries(rangeNames).map(([v, words]) => h('option', { value: v }, words)),
						h('option', { value: 'custom' }, 'From … to …'),
					),
					'range',
				),
				h(
					'div',
					{ class: 'custom', hidden: true },
					field(
						'from',
						h('input', {
							type: 'datetime-local',
							name: 'since',
							step: '1',
							change: (e) => setFilter({ range: '', since: fromLocal(e.target.value) }),
						}),
					),
					field(
						'to',
						h('input', {
							type: 'datetime-local',
							name: 'until',
							step: '1',
							change: (e) => setFilter({ range: '', until: fromLocal(e.target.value) }),
						}),
					),
				),
			],
		};
		fill(
			form,
			kind.filters.map((f) => fields[f]()),
			h(
				'button',
				{ type: 'button', class: 'quiet', id: `${view}-clear`, click: () => app.go(`#/${view}`) },
				icon('cross'),
				'Clear',
			),
		);
		fillForm();
	}

	function field(label, control, key) {
		return h(
			'label',
			{ class: `field${key ? ` field-${key}` : ''}` },
			h('span', { class: 'field-label' }, label),
			control,
		);
	}

	// fillChoices gives choices the values that are known now. A value of the address is always among them.
	function fillChoices() {
		for (const [select, known] of choices) {
			const values = [...new Set([...known(), filters[select.name]])].filter(Boolean);
			const sign = JSON.stringify(values);
			if (select.dataset.sign === sign) continue;
			select.dataset.sign = sign;
			const show = (v) => (v.length > 60 ? `${v.slice(0, 59)}…` : v.replaceAll('_', select.name === 'cause' ? ' ' : '_'));
			fill(
				select,
				h('option', { value: '' }, 'any'),
				values.map((v) => h('option', { value: v }, show(v))),
				h('option', { value: other }, 'another…'),
			);
			select.value = filters[select.name] ?? '';
		}
	}

	function fillForm() {
		fillChoices();
		for (const input of form.querySelectorAll('[name]')) {
			const value =
				input.name === 'since' || input.name === 'until' ? toLocal(filters[input.name]) : (filters[input.name] ?? '');
			if (input.name === 'range') input.value = filters.range ?? (filters.since || filters.until ? 'custom' : '');
			else if (document.activeElement !== input) input.value = value;
		}
		const custom = form.querySelector('.custom');
		if (custom) custom.hidden = !(filters.since || filters.until);
		form.querySelector(`#${view}-clear`).hidden = !Object.keys(filters).length;
	}

	function rangePicked(value) {
		const custom = form.querySelector('.custom');
		custom.hidden = value !== 'custom';
		if (value === 'custom') form.querySelector('[name=since]').focus();
		else setFilter({ range: value, since: '', until: '' });
	}

	function setFilter(changes) {
		const wanted = { ...filters, ...changes };
		for (const key of Object.keys(wanted)) if (!wanted[key]) delete wanted[key];
		app.go(`#/${view}${query(wanted)}`);
	}

	drawForm();
	refresher.request();
	app.learn().then(fillChoices);
	return {
		element,
		heading,
		title: kind.title,
		keeps: true,
		update(p) {
			const wanted = readFilters(p);
			if (JSON.stringify(wanted) === JSON.stringify(filters)) return;
			filters = wanted;
			rows = [];
			next = '';
			lookedBackTo = null;
			silent = 0;
			fresh = 0;
			loadedOnce = false;
			failure = null;
			more?.abort();
			more = null;
			empty.dataset.filtered = '';
			fillForm();
			draw();
			refresher.now();
		},
		rest() {
			stopListening();
		},
		wake() {
			startListening();
			refresher.request();
			app.learn().then(fillChoices);
		},
		leave() {
			gone = true;
			clearTimeout(skeleton);
			clearTimeout(laterTimer);
			stopListening();
			observer.disconnect();
			refresher.stop();
			more?.abort();
		},
	};
}

function fromLocal(value) {
	const d = new Date(value);
	return value && !Number.isNaN(d.getTime()) ? d.toISOString() : '';
}

function toLocal(value) {
	const d = new Date(value ?? '');
	if (Number.isNaN(d.getTime())) return '';
	return new Date(d.getTime() - d.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}
