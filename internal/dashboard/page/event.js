// One event: where it stands, its trail, its payload, and other payloads that came under its id.

import { failureNotice, post, query, read, Refresher } from './api.js';
import { ask, badge, copyButton, fill, foreign, h, icon, say, toast } from './dom.js';
import { age, bytes, coarse, count, counted, now, setNow, time } from './format.js';
import { elements, members, pretty } from './json.js';
import { eventLink } from './search.js';
import { detail, explained, outcome, rest, sentence, told, toneOf, upper } from './words.js';

const longText = 20000; // characters of a payload that are shown at first

// replayButton delivers an event again after the reader has confirmed it, and says how that went. p is a row of the
// queue.
export function replayButton(app, p, { small = false, done } = {}) {
	const button = h(
		'button',
		{ type: 'button', class: small ? 'small' : '', 'data-replay': p.event_id, click: replay },
		icon('retry'),
		'Replay',
	);
	async function replay() {
		const to = p.destination;
		const yes = await ask({
			title: 'Deliver this event again?',
			about: [
				foreign(p.event_id, { limit: 120 }),
				h(
					'span',
					{ class: 'muted' },
					'It goes to ',
					h('strong', {}, foreign(to)),
					' at once, and has all its attempts again. The destination may get it twice. The audit log says who asked.',
				),
			],
			go: 'Deliver again',
			sign: 'retry',
		});
		if (yes === null) return;
		button.disabled = true;
		try {
			const { data } = await post(
				`api/event/replay${query({ event_id: p.event_id, source: p.source, destination: to })}`,
			);
			toast(
				data.replayed ? 'The event is queued again.' : 'Nothing to replay: it is queued or under way already.',
				data.replayed ? 'good' : 'warn',
			);
		} catch (error) {
			toast(`Not replayed. ${error.message}`, 'bad');
		}
		button.disabled = false;
		done?.();
	}
	return button;
}

// acceptButton makes another payload that came under a known id an event of its own, or links to that event. c is a
// conflict.
export function acceptButton(c, done) {
	if (c.accepted_as)
		return h(
			'span',
			{},
			'accepted as ',
			h(
				'a',
				{ href: `#/event${query({ id: c.accepted_as, source: c.source })}` },
				foreign(c.accepted_as, { limit: 80 }),
			),
		);
	const button = h(
		'button',
		{
			type: 'button',
			class: 'small',
			'data-accept': c.payload_hash,
			title: 'Deliver this payload too, as an event of its own',
			click: async () => {
				const yes = await ask({
					title: 'Accept this payload?',
					about: [
						foreign(c.event_id, { limit: 120 }),
						'The payload becomes an event of its own and is delivered. The event that is stored stays as it is.',
					],
					go: 'Accept and deliver',
				});
				if (yes === null) return;
				button.disabled = true;
				try {
					const { data } = await post(
						`api/event/accept${query({ event_id: c.event_id, source: c.source, hash: c.payload_hash })}`,
					);
					button.replaceWith(acceptButton({ ...c, accepted_as: data.event_id }));
					toast([
						'It is the event ',
						h('a', { href: eventLink(data.event_id, c.source) }, foreign(data.event_id, { limit: 80 })),
						' now: see there how its delivery goes.',
					]);
					done?.();
				} catch (error) {
					toast(`Not accepted. ${error.message}`, 'bad');
					button.disabled = false;
				}
			},
		},
		icon('check'),
		'Accept this one',
	);
	return button;
}

// Timeline draws the steps of an event, and adds new ones.
export class Timeline {
	#first = null;
	#drawn = new Map();
	element = h('ol', { class: 'timeline' });

	set(steps, truncated) {
		this.#first = truncated ? null : (steps[0]?.timestamp ?? null);
		const fresh = this.#drawn.size > 0;
		const keys = new Set();
		const list = [];
		if (truncated) list.push(h('li', { class: 'step none' }, 'Earlier steps are left out.'));
		for (const step of steps) {
			keys.add(step.id);
			let li = this.#drawn.get(step.id);
			if (!li) {
				li = this.#step(step, fresh);
				this.#drawn.set(step.id, li);
			}
			list.push(li);
		}
		for (const key of this.#drawn.keys()) if (!keys.has(key)) this.#drawn.delete(key);
		if (list.length !== this.element.children.length || list.some((li, i) => this.element.children[i] !== li))
			this.element.replaceChildren(...list);
	}

	#step(step, fresh) {
		const tone = toneOf(step);
		const said = outcome(step.details, { limit: 240 });
		const others = rest(step.action, step.details).filter(([name]) => name !== 'payload_hash'); // the card shows both
		const offset = this.#first === null ? '' : offsetOf(this.#first, step.timestamp);
		return h(
			'li',
			{ class: `step ${tone}${fresh ? ' fresh' : ''}`, 'data-action': step.action },
			h(
				'span',
				{ class: 'step-mark' },
				icon({ good: 'check', bad: 'cross', wait: 'dot' }[tone]),
				h('span', { class: 'visually-hidden' }, step.success),
			),
			h(
				'div',
				{ class: 'step-body' },
				h(
					'div',
					{ class: 'step-line' },
					h('span', { class: 'step-what' }, sentence(step.action, step.details)),
					h('span', { class: 'step-time' }, h('span', { class: 'offset' }, offset), ' ', time(step.timestamp)),
				),
				said.length || others.length
					? h(
							'div',
							{ class: 'step-more' },
							said.map((part) => [part, ' ']),
							others.map(([name, value]) => [
								h('span', { class: 'muted' }, foreign(name), ': '),
								detail(value, name.endsWith('hash') ? 16 : 200),
								' ',
							]),
						)
					: null,
			),
		);
	}
}

function offsetOf(first, at) {
	const seconds = (Date.parse(at) - Date.parse(first)) / 1000;
	if (Number.isNaN(seconds)) return '';
	return seconds < 60 ? `+${seconds.toFixed(3)} s` : `+${coarse(seconds)}`;
}

// causes are the topics that say why an event waits, or who changed it.
const causes = ['by_hand', 'paused', 'locked', 'table_locked', 'unclaimed', 'delayed'];

// notable is a sentence that stands out.
function notable(s) {
	return h(
		'p',
		{ class: `badge long ${s.topic === 'delayed' ? 'wait' : 'warn'}`, 'data-topic': s.topic },
		icon(s.topic === 'paused' ? 'pause' : s.topic === 'delayed' ? 'clock' : 'alert'),
		told(s.says),
	);
}

// standing is a card that says where an event stands with one destination, and each cause for which it waits. The
// sentences are those of spine.explain(), as psql and spine trace have them.
export function standing(app, p, history, done) {
	const waits = p.status === 'pending' || p.status === 'failed';
	const attempts = explained(history, ['attempts'], p.destination)[0];
	return h(
		'div',
		{ class: 'standing', 'data-destination': p.destination },
		h('div', { class: 'standing-head' }, h('strong', {}, foreign(p.destination)), badge(p.status)),
		explained(history, ['standing'], p.destination).map((s) => h('p', {}, told(s.says), '.')),
		explained(history, causes, p.destination).map(notable),
		h(
			'dl',
			{ class: 'facts' },
			fact('tried', attempts ? foreign(attempts.says) : count(p.attempt_count)),
			waits && p.next_attempt_at ? fact('next attempt', [age(p.next_attempt_at), ', ', time(p.next_attempt_at)]) : null,
			p.status === 'processing' && p.next_attempt_at ? fact('lease ends', age(p.next_attempt_at)) : null,
			p.last_attempt_at ? fact('last attempt', [time(p.last_attempt_at), ' (', age(p.last_attempt_at), ')']) : null,
			p.completed_at ? fact('delivered', time(p.completed_at)) : null,
			p.worker ? fact('worker', foreign(p.worker, { limit: 60 })) : null,
			p.error_message
				? fact('last error', h('span', { class: 'error' }, foreign(p.error_message, { limit: 300 })))
				: null,
		),
		p.status === 'pending' || p.status === 'processing' ? null : replayButton(app, p, { done }),
	);
}

function fact(name, value) {
	return [h('dt', {}, name), h('dd', {}, value)];
}

// payloadCard shows JSON text indented, and as it came.
function payloadCard(title, raw, content, id) {
	if (raw === undefined || raw === 'null' || content.payload === null) {
		const base64 = content.payload_base64 ?? '';
		return h(
			'section',
			{ class: 'card', 'aria-labelledby': id },
			h('h2', { id }, title, ' ', h('span', { class: 'aside' }, copyButton(base64, 'Copy base64'))),
			h(
				'p',
				{},
				'Kept as bytes, because the database cannot query it: ',
				h('strong', {}, foreign(content.unqueryable ?? 'no reason is known')),
				'. It is delivered exactly as it came.',
			),
			h('h3', {}, 'As text'),
			h(
				'pre',
				{ class: 'code-block', tabindex: '0', role: 'region', 'aria-label': 'Payload as text' },
				clip(decoded(base64)),
			),
			h('h3', {}, 'base64'),
			h(
				'pre',
				{ class: 'code-block wrap', tabindex: '0', role: 'region', 'aria-label': 'Payload in base64' },
				clip(base64),
			),
		);
	}
	const nice = pretty(raw);
	const pre = h('pre', { class: 'code-block', tabindex: '0', role: 'region', 'aria-label': title }, clip(nice));
	const exact = h(
		'button',
		{
			type: 'button',
			class: 'quiet small',
			'aria-pressed': 'false',
			click: () => {
				const on = exact.getAttribute('aria-pressed') !== 'true';
				exact.setAttribute('aria-pressed', String(on));
				pre.classList.toggle('wrap', on);
				fill(pre, clip(on ? raw : nice));
			},
		},
		'On one line',
	);
	return h(
		'section',
		{ class: 'card', 'aria-labelledby': id },
		h(
			'h2',
			{ id },
			title,
			' ',
			h('span', { class: 'aside' }, h('span', { class: 'muted' }, bytes(new Blob([raw]).size)), exact, copyButton(raw)),
		),
		pre,
	);
}

function clip(text) {
	return foreign(text, { limit: longText, lines: true });
}

function decoded(base64) {
	try {
		return new TextDecoder().decode(Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)));
	} catch {
		return base64;
	}
}

// conflictCard shows two payloads side by side, and marks lines that the other does not have.
function conflictCard(stored, conflict, name, done) {
	const text = (raw, content) => (raw && raw !== 'null' ? pretty(raw) : decoded(content.payload_base64 ?? ''));
	const a = text(stored.raw, stored.content).split('\n');
	const b = text(conflict.raw, conflict.content).split('\n');
	const plain = (line) => line.trim().replace(/,$/, '');
	const inA = new Set(a.map(plain));
	const inB = new Set(b.map(plain));
	const side = (lines, others, sign, label) =>
		h(
			'pre',
			{ class: 'code-block diff', tabindex: '0', role: 'region', 'aria-label': label },
			lines
				.slice(0, 2000)
				.map((line) =>
					h(
						'span',
						{ class: others.has(plain(line)) ? 'line' : `line ${sign === '−' ? 'old' : 'new'}` },
						h('span', { class: 'sign' }, others.has(plain(line)) ? ' ' : sign),
						foreign(line, { limit: 2000 }),
						'\n',
					),
				),
		);
	const c = conflict.content;
	return h(
		'div',
		{ class: 'conflict' },
		h(
			'p',
			{},
			h(
				'span',
				{},
				name ? [h('strong', {}, name), ' came '] : 'Came ',
				c.seen_count === 1 ? 'once, ' : `${count(c.seen_count)} times, first `,
				time(c.created_at),
				', as ',
				foreign(c.event_type, { limit: 100 }),
			),
			h(
				'span',
				{ class: 'aside' },
				acceptButton({ ...c, event_id: stored.content.event_id, source: stored.content.source }, done),
				copyButton(conflict.raw && conflict.raw !== 'null' ? conflict.raw : (c.payload_base64 ?? '')),
			),
		),
		explained(stored.content, ['conflict'])
			.filter((s) => s.facts.payload_hash === c.payload_hash)
			.map((s) => placesOf(s, a.length + b.length)),
		h(
			'div',
			{ class: 'sides' },
			h('div', {}, h('h3', {}, 'Stored and delivered'), side(a, inB, '−', 'The payload that is stored')),
			h('div', {}, h('h3', {}, 'Came later, kept as evidence'), side(b, inA, '+', 'The payload that came later')),
		),
	);
}

// linked is a sentence on an id that is not stored, with a link to what it names.
function linked(s) {
	const said = told(s.says);
	if (s.topic === 'near') return h('a', { href: eventLink(s.facts.event_id, s.facts.source) }, said);
	if (s.topic === 'rejected') return h('a', { href: `#/request${query({ id: String(s.facts.id) })}` }, said);
	if (s.topic === 'disabled') return h('a', { href: '#/sources' }, said);
	return said;
}

// missing says what becomes of an id that is not stored.
function missing(explanation) {
	if (explanation.some((s) => s.topic === 'rejected'))
		return 'A rejected request is not stored by itself. Mend its cause, then replay it.';
	return 'If it arrives and is accepted, this page shows it.';
}

const manyLines = 50; // of two payloads, in which nobody sees their differences at a glance

// placesOf lists the first ten places in which two long payloads differ. Short ones show it themselves. s is a sentence
// on a conflict; where it knows no places, it says why.
function placesOf(s, lines) {
	const places = s.facts.differences ?? [];
	if (places.length && lines < manyLines) return null;
	const value = (d, side) => foreign(side in d ? JSON.stringify(d[side]) : 'absent', { limit: 60 });
	return h(
		'div',
		{ class: 'places' },
		places.length ? null : h('p', {}, told(s.says), '.'),
		places.length
			? h(
					'ul',
					{ class: 'places-list' },
					places.map((d) =>
						h(
							'li',
							{},
							h('code', {}, foreign(d.path || '/', { limit: 80 })),
							' ',
							value(d, 'was'),
							' → ',
							value(d, 'is'),
						),
					),
				)
			: null,
	);
}

// event is the view of one event.
export function event(app, parameters) {
	const id = parameters.get('id') ?? '';
	const source = parameters.get('source') ?? '';
	let failure = null;
	let history = null;
	let readAt = 0;
	let content = '';
	const heading = h('h1', { tabindex: '-1', class: 'event-id' }, foreign(id, { limit: 255 }));
	const status = h('div', { class: 'event-status', role: 'status' });
	const facts = h('dl', { class: 'facts wide' });
	const notice = h('div', { class: 'notice-space' });
	const stands = h('div', { class: 'stands' });
	const timeline = new Timeline();
	const payload = h('div', {});
	const conflicts = h('div', {});
	const parts = h(
		'div',
		{ class: 'event-parts', hidden: true },
		h(
			'div',
			{ class: 'columns event-columns' },
			h(
				'section',
				{ class: 'card', 'aria-labelledby': 'h-timeline' },
				h('h2', { id: 'h-timeline' }, 'What happened'),
				timeline.element,
			),
			h(
				'div',
				{ class: 'stack' },
				h(
					'section',
					{ class: 'card', 'aria-labelledby': 'h-stands' },
					h('h2', { id: 'h-stands' }, 'Where it stands'),
					stands,
				),
				payload,
			),
		),
		conflicts,
	);
	const wait = h(
		'div',
		{ class: 'skeletons', 'aria-hidden': 'true', hidden: true },
		Array.from({ length: 6 }, () => h('div', { class: 'skeleton' })),
	);
	const element = h(
		'div',
		{ class: 'view event-view' },
		h('p', { class: 'crumb' }, h('a', { href: '#/events' }, '← Events')),
		h('div', { class: 'event-head' }, heading, copyButton(id, 'Copy id'), status),
		facts,
		notice,
		wait,
		parts,
	);
	const skeleton = setTimeout(() => {
		if (!history && !failure) wait.hidden = false;
	}, 150);

	const refresher = new Refresher(async (signal) => {
		try {
			const { data, text } = await read(`api/event${query({ event_id: id, source })}`, signal);
			history = { data, text };
			failure = null;
			readAt = now();
		} catch (error) {
			if (signal.aborted) throw error;
			failure = error;
			requestAnimationFrame(draw);
			if (error.status === 404 || error.status === 400) return; // another try would not help
			throw error;
		}
		requestAnimationFrame(draw);
	});
	// The overview knows the database's clock for countdowns.
	const context = new Refresher(async (signal) => {
		const { data } = await read(`api/overview${query({ range: '15m' })}`, signal);
		setNow(data.at);
	}, 10000);

	function draw() {
		clearTimeout(skeleton);
		wait.hidden = true;
		element.classList.toggle('stale', Boolean(failure) && Boolean(history));
		drawNotice();
		parts.hidden = !history;
		if (!history) return;
		const d = history.data;
		const worst = d.status ?? '';
		if (status.dataset.status !== worst) {
			if (status.dataset.status) say(`The event is ${worst} now.`);
			status.dataset.status = worst;
			fill(status, worst ? badge(worst) : h('span', { class: 'badge wait' }, 'queued for no destination'));
		}
		const seen = JSON.stringify([d.seen_count, d.conflicts.length]);
		if (facts.dataset.seen !== seen) {
			facts.dataset.seen = seen;
			const facet = (name, value) => h('div', {}, fact(name, value));
			fill(
				facts,
				facet('type', foreign(d.event_type, { limit: 100 })),
				facet('source', h('a', { href: `#/events${query({ source: d.source })}` }, foreign(d.source))),
				facet('stored', [time(d.created_at), ' (', age(d.created_at), ')']),
				facet('occurred', time(d.occurred_at)),
				facet(
					'received',
					(d.seen_count === 1 ? 'once' : `${count(d.seen_count)} times`) +
						(d.explanation.some((s) => s.topic === 'sampled') ? ', a sample of which is in the trail' : ''),
				),
				d.conflicts.length
					? facet(
							'conflicts',
							h(
								'a',
								{
									href: '#conflicts',
									click: (e) => {
										e.preventDefault();
										conflicts.scrollIntoView({ block: 'start' });
										conflicts.querySelector('h2')?.focus();
									},
								},
								`${counted(d.conflicts.length, 'other payload')} kept`,
							),
						)
					: null,
				d.same_body_as
					? facet(
							'same body as',
							h(
								'a',
								{ href: `#/event${query({ id: d.same_body_as, source: d.source })}` },
								foreign(d.same_body_as, { limit: 60 }),
							),
						)
					: null,
				d.id_derived ? facet('id', 'made from the body: the sender gave none') : null,
				facet('hash', h('code', { class: 'hash', title: d.payload_hash }, `${d.payload_hash.slice(0, 12)}…`)),
			);
		}
		timeline.set(d.timeline, d.timeline_truncated);
		const said = explained(d, ['attempts', 'standing', 'disabled', ...causes]);
		const now_ = JSON.stringify([d.processing, said]); // sentences have times such as "in 59m"
		if (stands.dataset.now !== now_ && !stands.contains(document.activeElement)) {
			stands.dataset.now = now_;
			fill(
				stands,
				explained(d, ['disabled']).map(notable),
				d.processing.length
					? d.processing.map((p) => standing(app, p, d, () => refresher.now()))
					: h('p', { class: 'none' }, 'It is stored, and queued for no destination.'),
			);
		}
		// The payload never changes; conflicts only grow, and are counted.
		const sign = JSON.stringify([d.payload_hash, d.conflicts.map((c) => [c.payload_hash, c.seen_count, c.accepted_as])]);
		if (content !== sign) {
			content = sign;
			const raw = members(history.text);
			fill(payload, payloadCard('Payload', raw.payload, d, 'h-payload'));
			const others = elements(raw.conflicts ?? '[]');
			fill(
				conflicts,
				d.conflicts.length
					? h(
							'section',
							{ class: 'card', id: 'conflicts', 'aria-labelledby': 'h-conflicts' },
							h(
								'h2',
								{ id: 'h-conflicts', tabindex: '-1' },
								'Conflicts ',
								h('span', { class: 'muted' }, counted(d.conflicts.length, 'other payload'), ' under this id'),
							),
							d.conflicts.map((c, i) =>
								conflictCard(
									{ raw: raw.payload, content: d },
									{ raw: members(others[i] ?? '').payload, content: c },
									d.conflicts.length > 1 ? `Other payload ${i + 1}` : '',
									() => refresher.now(),
								),
							),
						)
					: null,
			);
		}
	}

	function drawNotice() {
		if (!failure) return fill(notice);
		const gone = failure.status === 404;
		const again = () => refresher.now();
		if (!failure.sources.length)
			return fill(
				notice,
				failureNotice(failure, readAt, again, {
					tone: gone ? 'warn' : 'bad',
					words: upper(failure.explanation[0]?.says ?? failure.message),
					choices:
						failure.explanation.length > 1
							? h(
									'ul',
									{ class: 'explanation' },
									failure.explanation.slice(1).map((s) => h('li', { 'data-topic': s.topic }, linked(s))),
								)
							: null,
					todo: gone ? missing(failure.explanation) : undefined,
				}),
			);
		const links = failure.sources.map((s) => h('a', { href: `#/event${query({ id, source: s })}` }, foreign(s)));
		fill(
			notice,
			failureNotice(failure, readAt, null, {
				tone: 'warn',
				words: 'Several sources have an event with this id. Which one do you mean?',
				choices: h(
					'ul',
					{ class: 'inline' },
					links.map((link) => h('li', {}, link)),
				),
				todo: '',
			}),
		);
	}

	const stopListening = app.live.listen((message) => {
		if (message.kind === 'audit' && !message.rows.some((r) => r.event_id === id && (!source || r.source === source)))
			return;
		refresher.request();
		if (message.kind !== 'audit') context.request();
	});
	refresher.request();
	context.request();
	return {
		element,
		heading,
		title: 'Event',
		update() {},
		leave() {
			clearTimeout(skeleton);
			stopListening();
			refresher.stop();
			context.stop();
		},
	};
}
