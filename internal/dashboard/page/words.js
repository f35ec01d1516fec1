// Steps and states in words. The sentences are much like those of `spine trace`.

import { foreign, h } from './dom.js';
import { coarse, count, span, time } from './format.js';

const text = (value) => (typeof value === 'string' ? value : JSON.stringify(value));
const ms = (value) => (typeof value === 'number' ? span(value / 1000) : text(value));

// where names a destination, unless it is the default one.
function where(d) {
	return d.destination && d.destination !== 'default' ? [' at ', foreign(d.destination)] : [];
}

// sentence is a step as parts of a line.
export function sentence(action, details) {
	const d = details !== null && typeof details === 'object' && !Array.isArray(details) ? details : { details };
	const at = where(d);
	const by = d.by ? [' by ', foreign(text(d.caller ?? d.by))] : [];
	const because = d.reason ? [', because: ', foreign(text(d.reason), { limit: 300 })] : [];
	const attempt = `attempt ${d.attempt ?? '?'}`;
	const worker = d.worker ? foreign(text(d.worker), { limit: 40 }) : 'a worker';
	switch (action) {
		case 'event_received':
			return ['Received'];
		case 'event_inserted':
			return ['Stored and queued'];
		case 'event_deduped':
			return ['Known already, with this payload: nothing to do'];
		case 'conflict_detected': {
			const kept = { kept: ': kept as evidence', known: ': as kept before', full: ': not kept, there are ten' };
			return ['Known already, with another payload', kept[d.evidence] ?? ''];
		}
		case 'event_queued':
			return ['Queued by hand', by, d.status ? [' as ', foreign(text(d.status))] : [], at, because];
		case 'processing_attempt_started':
			return [upper(attempt), ' started by ', worker, at];
		case 'processing_attempt_failed':
			return [upper(attempt), ' failed', at];
		case 'processing_succeeded':
			return [upper(attempt), ' delivered', at];
		case 'retry_scheduled':
			return ['Next attempt in ', ms(d.delay_ms), delayReasons[d.reason] ?? '', at];
		case 'delivery_deferred':
			return [upper(attempt), ' not counted: the destination was not reached; next in ', ms(d.delay_ms), at];
		case 'processing_failed_permanently':
			return ['Given up after ', attempt, at];
		case 'lease_expired':
			return [upper(attempt), ': the lease of ', worker, ' ran out', at];
		case 'lease_returned':
			return [upper(attempt), ' was not started, ', worker, ' gave it back', at];
		case 'lease_lost':
			return [
				'A late result',
				d.outcome ? [' (', foreign(text(d.outcome)), ')'] : [],
				' changed nothing: its lease was lost',
				at,
			];
		case 'status_changed':
			return ['Status changed by hand from ', foreign(text(d.from)), ' to ', foreign(text(d.to)), by, at, because];
		case 'event_replayed':
			return ['Replayed', by, d.from ? [', was ', foreign(text(d.from))] : [], at];
		case 'claims_paused':
			return ['Claims paused', d.destination ? [' for ', foreign(text(d.destination))] : [], by, because];
		case 'claims_resumed':
			return ['Claims resumed', d.destination ? [' for ', foreign(text(d.destination))] : [], by];
		case 'request_rejected':
			return [
				d.count === 1 ? 'A request was rejected' : `${count(d.count)} requests were rejected`,
				d.status ? ` with ${text(d.status)}` : '',
				d.cause ? [' (', foreign(visibleWords(text(d.cause))), ')'] : [],
			];
		case 'events_expired':
			return [`${count(d.count)} old events removed by retention`];
		case 'audit_expired':
			return ['Old steps of the audit log removed by retention'];
		case 'request_replayed':
			return [`Rejected request ${d.request ?? ''} to be replayed`, d.trust ? ', unverified' : '', by];
		case 'conflict_accepted':
			return ['Other payload accepted as ', foreign(text(d.accepted_as)), by];
		case 'source_added':
		case 'source_changed':
		case 'source_disabled':
		case 'source_enabled':
		case 'source_removed':
			return [upper(visibleWords(action)), by, because];
		default: {
			const words = upper(visibleWords(action));
			return [foreign(words)];
		}
	}
}

const good = new Set([
	'event_received',
	'event_inserted',
	'event_deduped',
	'processing_succeeded',
	'claims_resumed',
	'source_enabled',
	'conflict_accepted',
]);
const bad = new Set(['lease_expired', 'lease_lost']);

// toneOf says how a step reads: good news, bad news, or neither (wait). A tick stands before good news alone. The audit
// log's column success is another thing: a pause succeeds too.
export function toneOf(step) {
	const to = step.action === 'status_changed' ? step.details?.to : '';
	if (good.has(step.action) || to === 'completed') return 'good';
	return step.success === 'failure' || bad.has(step.action) || to === 'dead' ? 'bad' : 'wait';
}

const delayReasons = {
	'Retry-After': ', as the destination asked (Retry-After)',
	policy: ', by the retry policy',
};
export const upper = (s) => s.charAt(0).toUpperCase() + s.slice(1);
const visibleWords = (s) => String(s).replaceAll('_', ' ');

// outcome is a destination's answer, as parts; empty where a step has none. The answer to a rejected request is Spine's
// own, and its sentence says it. Where brief is true, what a destination said to a success is left out.
export function outcome(d, { limit = 200, brief = false } = {}) {
	if (d === null || typeof d !== 'object' || d.cause) return [];
	const parts = [];
	if (d.status !== undefined && d.status !== null && typeof d.status === 'number')
		parts.push(h('span', { class: 'code' }, `HTTP ${d.status}`));
	const error = d.error ? text(d.error) : '';
	if (error && !(typeof d.status === 'number' && error.startsWith(`HTTP ${d.status}`)))
		parts.push(h('span', { class: 'error' }, foreign(error, { limit })));
	if (typeof d.duration_ms === 'number') parts.push(h('span', { class: 'muted' }, `after ${ms(d.duration_ms)}`));
	if (typeof d.answer === 'string' && d.answer.trim() && !(brief && d.status >= 200 && d.status < 300))
		parts.push(h('span', { class: 'answer' }, foreign(d.answer.trim(), { limit })));
	return parts;
}

const said = new Set([
	'attempt',
	'status',
	'error',
	'duration_ms',
	'answer',
	'delay_ms',
	'retry_after_ms',
	'reason',
	'destination',
	'worker',
	'by',
	'caller',
	'from',
	'to',
	'evidence',
	'outcome',
	'lease',
	'next_attempt_at',
	'accepted_as',
	'request',
	'trust',
	'cause',
	'count',
]);

// rest is the details that sentence and outcome do not say.
export function rest(action, d) {
	if (d === null || typeof d !== 'object' || Array.isArray(d)) return d === null ? [] : [['details', text(d)]];
	const known = sentenceKnows(action);
	return Object.entries(d)
		.filter(([name]) => !known || !said.has(name) || (name === 'count' && action === 'audit_expired'))
		.flatMap(([name, value]) =>
			name === 'changes' && value !== null && typeof value === 'object'
				? Object.entries(value).map(([setting, c]) => [setting, `${side(c, 'from')} → ${side(c, 'to')}`])
				: [[name, text(value)]],
		);
}

function side(change, name) {
	return change !== null && typeof change === 'object' && name in change ? text(change[name]) : 'absent';
}

const written = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

// detail shows a value of a step's details. A time is shown as every other time.
export function detail(value, limit) {
	return written.test(value) ? time(value) : foreign(value, { limit });
}

const actions = new Set([
	'event_received',
	'event_inserted',
	'event_deduped',
	'conflict_detected',
	'event_queued',
	'processing_attempt_started',
	'processing_attempt_failed',
	'retry_scheduled',
	'processing_succeeded',
	'processing_failed_permanently',
	'lease_expired',
	'lease_returned',
	'lease_lost',
	'status_changed',
	'event_replayed',
	'request_rejected',
	'claims_paused',
	'claims_resumed',
	'events_expired',
	'audit_expired',
	'source_added',
	'source_changed',
	'source_disabled',
	'source_enabled',
	'source_removed',
	'request_replayed',
	'conflict_accepted',
	'delivery_deferred',
]);
export const knownActions = [...actions];

// knownCauses are the causes of rejections, as internal/ingest has them.
export const knownCauses = [
	'not_json',
	'cut_short',
	'repeated_header',
	'signature_missing',
	'signature_wrong',
	'timestamp_bad',
	'timestamp_stale',
	'credentials_missing',
	'credentials_wrong',
	'verify_token_wrong',
	'no_such_source',
	'method',
	'too_slow',
	'too_large',
	'content_type',
	'content_encoding',
	'invalid_event',
	'address_rate',
	'source_rate',
	'unavailable',
	'intake_full',
	'bytes_in_flight',
	'source_disabled',
	'source_broken',
	'source_closed',
];
const sentenceKnows = (action) => actions.has(action);

// explained is the sentences of spine.explain() on some topics, for one destination where it is given.
export function explained(history, topics, destination) {
	return (history?.explanation ?? []).filter(
		(s) => topics.includes(s.topic) && (destination === undefined || s.destination === destination),
	);
}

// told shows a sentence of spine.explain(), with its times as every other time.
export function told(sentence) {
	const parts = upper(sentence).split(/(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)/);
	return h(
		'span',
		{},
		parts.map((part, i) => (i % 2 ? time(part) : part ? foreign(part, { limit: 600 }) : null)),
	);
}

// depths sums the depth of all destinations by status. A sum is null where it is not known.
export function depths(overview) {
	const sums = { pending: 0, processing: 0, failed: 0, dead: 0 };
	if (!overview?.depth?.at) return { pending: null, processing: null, failed: null, dead: null };
	for (const row of overview.depth.rows ?? []) if (row.status in sums) sums[row.status] += row.count;
	return sums;
}

// undelivered is how many events are neither delivered nor dead. The verdict, the destinations and the chart show it.
export function undelivered(overview) {
	const d = depths(overview);
	return d.pending === null ? null : d.pending + d.processing + d.failed;
}

// due is how long the oldest row has been due, in words: the one figure for that, of the same sample as the counts.
export function due(overview) {
	const seconds = overview?.oldest_ready_seconds;
	if (typeof seconds !== 'number') return '';
	return seconds >= 1 ? `the oldest due for ${coarse(seconds)}` : 'nothing is late';
}

// verdict is the state in one sentence and a tone.
export function verdict(overview) {
	const d = depths(overview);
	const parts = (overview.troubles ?? []).map((t) => t.says);
	let tone = parts.length ? 'bad' : 'good';
	if (d.pending === null) {
		return parts.length
			? { tone, sentence: upper(`${parts.join('; ')}.`) }
			: { tone: 'wait', sentence: 'The queue is not counted yet.' };
	}
	const left = undelivered(overview);
	const paused = overview.paused ?? [];
	if (paused.length) {
		if (tone === 'good') tone = 'warn';
		const others = paused.some((p) => p.destination !== 'default');
		parts.push(others ? `Claims are paused for ${paused.map((p) => p.destination).join(', ')}` : 'Claims are paused');
	}
	if (d.dead) {
		tone = 'bad';
		parts.push(d.dead === 1 ? '1 dead letter needs you' : `${count(d.dead)} dead letters need you`);
	}
	const broken = (overview.sources ?? []).filter((s) => s.state === 'broken');
	if (broken.length) {
		tone = 'bad';
		parts.push(broken.length === 1 ? `the source ${broken[0].source} is broken` : `${broken.length} sources are broken`);
	}
	if (left) {
		const late = due(overview);
		parts.push(`${count(left)} not delivered yet${late ? `, ${late}` : ''}`);
		if (tone === 'good') tone = 'wait';
	}
	if (!parts.length) parts.push('All delivered');
	else if (!left && d.dead) parts.push('everything else is delivered');
	else if (!left && broken.length) parts.push('all that came in is delivered');
	return { tone, sentence: upper(`${parts.join('; ')}.`) };
}
