// Requests to the server. Addresses are relative to the page, so that it works under any path that a proxy gives it.

import { foreign, h, icon } from './dom.js';
import { age } from './format.js';

// Problem is an error in the words of the server (RFC 9457). Where there was no answer it is in ours, and status is 0.
class Problem extends Error {
	constructor(status, detail, more = {}) {
		super(detail);
		this.status = status;
		this.errors = more.errors ?? [];
		this.sources = more.sources ?? [];
		this.explanation = more.explanation ?? [];
	}
}

const limit = 20000; // ms; the server itself gives up after 5 s

export function query(parameters) {
	const q = new URLSearchParams();
	for (const [name, value] of Object.entries(parameters)) {
		if (value !== '' && value !== null && value !== undefined) q.set(name, value);
	}
	const text = q.toString();
	return text ? `?${text}` : '';
}

// read gets a path. It returns the answer as data and as text, and for a list the query of the next page and how far
// back the page has scanned.
export async function read(path, signal) {
	return ask(path, { headers: { Accept: 'application/json' } }, signal);
}

// post sends a body and returns the answer. It throws a Problem like read.
export async function post(path, body) {
	const options = { method: 'POST' };
	if (body !== undefined) Object.assign(options, { body, headers: { 'Content-Type': 'application/json' } });
	return ask(path, options);
}

// put is post for a thing of its own name, such as a source.
export async function put(path, body) {
	return ask(path, { method: 'PUT', body, headers: { 'Content-Type': 'application/json' } });
}

async function ask(path, options, signal) {
	const signals = [AbortSignal.timeout(limit)];
	if (signal) signals.push(signal);
	let response;
	let text;
	try {
		response = await fetch(path, {
			...options,
			cache: 'no-store',
			credentials: 'same-origin',
			signal: AbortSignal.any(signals),
		});
		text = await response.text();
	} catch (error) {
		if (signal?.aborted) throw error;
		throw new Problem(
			0,
			error.name === 'TimeoutError' ? 'Spine has not answered within 20 seconds.' : 'Spine cannot be reached.',
		);
	}
	let data = null;
	try {
		data = JSON.parse(text);
	} catch {
		/* said below, by its status */
	}
	if (!response.ok) throw problemOf(response, data);
	if (data === null) throw new Problem(response.status, 'The answer is not JSON. Is there a proxy in between?');
	const next = /<[^>]*\?([^>]*)>;\s*rel="next"/.exec(response.headers.get('Link') ?? '');
	return {
		data,
		text,
		status: response.status,
		next: next ? next[1] : '',
		lookedBackTo: response.headers.get('Spine-Looked-Back-To'),
	};
}

function problemOf(response, data) {
	const detail =
		typeof data?.detail === 'string' ? data.detail : `The answer was ${response.status} ${response.statusText}.`;
	return new Problem(response.status, detail, data ?? {});
}

// advice says what to do about a problem.
function advice(problem) {
	switch (problem.status) {
		case 0:
			return 'The page tries again by itself. Is the server running, and the network up?';
		case 401:
			return 'Reload the page and give the admin token as the password.';
		case 403:
			return 'Open the page on the machine on which Spine runs, or set ADMIN_TOKEN.';
		case 404:
			return '';
		case 400:
		case 422:
			return 'Change the filters, or start again without them.';
		default:
			return 'The page tries again by itself.';
	}
}

// failureNotice says what failed, how old the rest of the view is, and what to do. readAt is 0 where the view shows
// nothing yet. retry, if given, gets a button.
export function failureNotice(
	failure,
	readAt,
	retry,
	{ tone = 'bad', words = failure.message, choices = null, todo = advice(failure) } = {},
) {
	return h(
		'div',
		{ class: `notice ${tone}`, role: 'alert' },
		icon('alert'),
		h(
			'div',
			{},
			h('p', {}, h('strong', {}, foreign(words, { limit: 500 }))),
			choices,
			h('p', {}, readAt ? ['This is as of ', age(new Date(readAt).toISOString()), '. '] : null, todo),
		),
		retry ? h('button', { type: 'button', click: retry }, 'Try again now') : null,
	);
}

// Refresher calls load whenever it is asked to, at most once in `every` milliseconds and never twice at a time.
// Requests that come meanwhile make it load once more at the end. After a failure it tries again by itself, each time a
// little later. In a hidden tab it waits until the tab is shown.
export class Refresher {
	#load;
	#every;
	#timer = 0;
	#busy = false;
	#wanted = false;
	#last = -Infinity;
	#failures = 0;
	#stopped = false;
	#abort = null;

	constructor(load, every = 1000) {
		this.#load = load;
		this.#every = every;
		this.#onVisible = () => {
			if (!document.hidden && this.#wanted) this.request();
		};
		document.addEventListener('visibilitychange', this.#onVisible);
	}

	#onVisible;

	request() {
		this.#wanted = true;
		if (this.#stopped || this.#busy || this.#timer || document.hidden) return;
		const wait = this.#last + this.#pause() - performance.now();
		if (wait > 0)
			this.#timer = setTimeout(() => {
				this.#timer = 0;
				this.#run();
			}, wait);
		else this.#run();
	}

	// now loads at once, whatever was loaded or failed just before.
	now() {
		clearTimeout(this.#timer);
		this.#timer = 0;
		this.#abort?.abort();
		this.#busy = false;
		this.#failures = 0;
		this.#last = -Infinity;
		this.request();
	}

	stop() {
		this.#stopped = true;
		clearTimeout(this.#timer);
		this.#abort?.abort();
		document.removeEventListener('visibilitychange', this.#onVisible);
	}

	#pause() {
		return this.#failures ? Math.min(10000, 1000 * 2 ** (this.#failures - 1)) : this.#every;
	}

	async #run() {
		if (document.hidden) return;
		const abort = new AbortController();
		this.#abort = abort;
		this.#busy = true;
		this.#wanted = false;
		let failed = false;
		try {
			await this.#load(abort.signal);
		} catch (error) {
			if (abort.signal.aborted) return;
			if (!(error instanceof Problem)) console.error(error);
			failed = true;
		}
		if (abort.signal.aborted) return;
		this.#busy = false;
		this.#last = performance.now();
		this.#failures = failed ? this.#failures + 1 : 0;
		if (failed || this.#wanted) this.request();
	}
}
