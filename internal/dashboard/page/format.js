// Numbers and times as people read them, in their own zone and language.

import { h } from './dom.js';

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const two = new Intl.NumberFormat(undefined, { maximumFractionDigits: 2 });
const compact = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });

// unknown stands for a value that nobody knows. It is never 0.
export const unknown = '—';

const known = (n) => typeof n === 'number' && Number.isFinite(n);

export function count(n) {
	return known(n) ? whole.format(n) : unknown;
}

export function short(n) {
	if (!known(n)) return unknown;
	return Math.abs(n) < 10000 ? one.format(n) : compact.format(n);
}

export function rate(n) {
	if (!known(n)) return unknown;
	return n !== 0 && Math.abs(n) < 1 ? two.format(n) : short(n);
}

// counted is a number with its noun, whose plural ends in s.
export function counted(n, noun) {
	return `${count(n)} ${noun}${n === 1 ? '' : 's'}`;
}

// span is a duration in seconds, with the digits that matter.
export function span(seconds) {
	if (!known(seconds)) return unknown;
	const s = Math.abs(seconds);
	if (s === 0) return '0 s';
	if (s < 0.001) return `${whole.format(s * 1e6)} µs`;
	if (s < 0.01) return `${one.format(s * 1000)} ms`;
	if (s < 1) return `${whole.format(s * 1000)} ms`;
	if (s < 10) return `${one.format(s)} s`;
	return coarse(s);
}

// coarse is a duration in whole units, for texts that count on.
export function coarse(seconds) {
	const s = Math.max(0, Math.round(Math.abs(seconds)));
	if (s < 60) return `${s} s`;
	if (s < 3600) return s % 60 && s < 600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`;
	if (s < 86400)
		return Math.floor((s % 3600) / 60)
			? `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`
			: `${Math.floor(s / 3600)} h`;
	const hours = Math.floor((s % 86400) / 3600);
	return hours && s < 864000 ? `${Math.floor(s / 86400)} d ${hours} h` : `${Math.floor(s / 86400)} d`;
}

export function bytes(n) {
	if (n < 1000) return `${n} B`;
	return n < 1e6 ? `${one.format(n / 1000)} kB` : `${one.format(n / 1e6)} MB`;
}

// The database's clock counts. skew is how far it is ahead of this machine's.
let skew = 0;
export function setNow(at) {
	const t = Date.parse(at);
	if (!Number.isNaN(t)) skew = t - Date.now();
}
export const now = () => Date.now() + skew;

const clockFormat = new Intl.DateTimeFormat(undefined, {
	hour: '2-digit',
	minute: '2-digit',
	second: '2-digit',
	fractionalSecondDigits: 3,
	hourCycle: 'h23',
});
const dayFormat = new Intl.DateTimeFormat(undefined, { month: 'short', day: 'numeric' });
const yearFormat = new Intl.DateTimeFormat(undefined, { year: 'numeric', month: 'short', day: 'numeric' });
const minuteFormat = new Intl.DateTimeFormat(undefined, {
	hour: '2-digit',
	minute: '2-digit',
	second: '2-digit',
	hourCycle: 'h23',
});

// local is a moment to the millisecond in the reader's zone, with its day if that is not today.
export function local(at, { precise = true } = {}) {
	const d = new Date(at);
	const today = new Date(now());
	const clock = (precise ? clockFormat : minuteFormat).format(d);
	if (d.toDateString() === today.toDateString()) return clock;
	const day = d.getFullYear() === today.getFullYear() ? dayFormat : yearFormat;
	return `${day.format(d)}, ${clock}`;
}

function utc(at) {
	return `${new Date(at).toISOString().replace('T', ' ').replace('Z', '')} UTC`;
}

const endless = { infinity: 'never', '-infinity': 'always' };

// time shows a moment, with UTC on hover.
export function time(at, options) {
	if (at === null || at === undefined) return h('span', { class: 'none' }, unknown);
	if (endless[at]) return h('span', {}, endless[at]);
	if (Number.isNaN(Date.parse(at))) return h('span', {}, String(at));
	const precise = options?.precise === false ? 'no' : 'yes';
	return h('time', { datetime: at, title: utc(at), 'data-precise': precise }, local(at, options));
}

// redate writes all moments anew. A time without a day means today, so it must get its day at midnight.
let written = '';
export function redate() {
	written = new Date(now()).toDateString();
	for (const element of document.querySelectorAll('time[data-precise]')) {
		const text = local(element.dateTime, { precise: element.dataset.precise === 'yes' });
		if (element.textContent !== text) element.textContent = text;
	}
}

// age shows how long ago a moment was, or how long it is until then. tick keeps it up to date.
export function age(at) {
	if (at === null || at === undefined) return h('span', { class: 'none' }, unknown);
	if (endless[at]) return h('span', {}, endless[at]);
	const element = h('time', { datetime: at, title: utc(at), 'data-tick': String(Date.parse(at)) });
	element.textContent = distance(Date.parse(at));
	return element;
}

function distance(at) {
	const seconds = (now() - at) / 1000;
	if (seconds < -0.5) return `in ${coarse(Math.ceil(-seconds))}`;
	return seconds < 1 ? 'just now' : `${coarse(seconds)} ago`;
}

// tick brings all ages up to date, and all moments when a day ends.
export function tick() {
	if (written !== new Date(now()).toDateString()) redate();
	for (const element of document.querySelectorAll('[data-tick]')) {
		const text = distance(Number(element.dataset.tick));
		if (element.textContent !== text) element.textContent = text;
	}
}

// since is the time that lies a range, such as 15m, before now.
export const ranges = { '15m': 900, '1h': 3600, '6h': 21600, '24h': 86400, '7d': 604800 };
export const rangeNames = {
	'15m': 'Last 15 minutes',
	'1h': 'Last hour',
	'6h': 'Last 6 hours',
	'24h': 'Last 24 hours',
	'7d': 'Last 7 days',
};
export function since(range) {
	return new Date(now() - ranges[range] * 1000).toISOString();
}
