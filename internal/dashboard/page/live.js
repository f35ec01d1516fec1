// The live stream: one for the page, whichever view is shown. It is a doorbell for most views: they then read again,
// and so show what the tables hold even if a message was lost.

const maxRows = 200; // a second; beyond that the server sends counts
const farewell = 60000; // ms after which a hidden tab closes the stream

// Live calls listeners with {kind: 'audit', rows}, {kind: 'summary', …} and {kind: 'reset'}. A reset also comes after
// the connection was lost, since views may be old then. {kind: 'poll'} comes by the clock.
export class Live {
	#source = null;
	#cursor = '';
	#listeners = new Set();
	#watchers = new Set();
	#state = 'connecting';
	#failures = 0;
	#timer = 0;
	#slept = false;
	#hidden = 0;

	constructor() {
		document.addEventListener('visibilitychange', () => this.#look());
		window.addEventListener('online', () => {
			if (!this.#source) this.start();
		});
		// Without a stream views must poll. With one they poll now and then, since a doorbell may be broken.
		let turn = 0;
		setInterval(() => {
			if (++turn % 3 === 0 || this.#state !== 'live') this.#tell({ kind: 'poll' });
		}, 5000);
	}

	get state() {
		return this.#state;
	}

	listen(listener) {
		this.#listeners.add(listener);
		return () => this.#listeners.delete(listener);
	}

	watch(watcher) {
		this.#watchers.add(watcher);
		watcher(this.#state);
		return () => this.#watchers.delete(watcher);
	}

	start() {
		clearTimeout(this.#timer);
		this.#source?.close();
		const parameters = new URLSearchParams({ max_rows: String(maxRows) });
		if (this.#cursor) parameters.set('last_event_id', this.#cursor);
		const source = new EventSource(`api/stream?${parameters}`);
		this.#source = source;
		source.onopen = () => {
			const back = this.#state !== 'connecting' || this.#failures > 0;
			this.#failures = 0;
			this.#set('live');
			if (back) this.#tell({ kind: 'reset' });
		};
		source.onerror = () => {
			if (source !== this.#source) return;
			this.#set('reconnecting');
			// The browser connects again by itself, unless the server answered with an error.
			if (source.readyState !== EventSource.CLOSED) return;
			this.#source = null;
			this.#timer = setTimeout(() => this.start(), Math.min(10000, 1000 * 2 ** this.#failures++));
		};
		source.addEventListener('cursor', (message) => {
			this.#cursor = message.lastEventId;
		});
		source.addEventListener('audit', (message) => this.#receive(message, (rows) => ({ kind: 'audit', rows })));
		source.addEventListener('summary', (message) =>
			this.#receive(message, (summary) => ({ kind: 'summary', ...summary })),
		);
		source.addEventListener('reset', (message) => this.#receive(message, () => ({ kind: 'reset' })));
	}

	#receive(message, read) {
		if (message.lastEventId) this.#cursor = message.lastEventId;
		if (document.hidden) {
			this.#slept = true; // nobody looks: views read again afterwards
			return;
		}
		this.#tell(read(JSON.parse(message.data)));
	}

	#look() {
		clearTimeout(this.#hidden);
		if (document.hidden) {
			this.#hidden = setTimeout(() => {
				this.#source?.close();
				this.#source = null;
				clearTimeout(this.#timer);
				this.#slept = true;
			}, farewell);
			return;
		}
		if (this.#slept) {
			this.#slept = false;
			this.#tell({ kind: 'reset' });
		}
		if (!this.#source) this.start();
	}

	#tell(message) {
		for (const listener of this.#listeners) listener(message);
	}

	#set(state) {
		if (this.#state === state) return;
		this.#state = state;
		for (const watcher of this.#watchers) watcher(state);
	}
}
