// Numbers over time as lines. Each chart has its latest values in words, and a table for readers who cannot see it.
// Charts are drawn as SVG, so that the style sheet gives them their colours.

import { fill, h } from './dom.js';
import { local, unknown } from './format.js';

const space = 'http://www.w3.org/2000/svg';
const height = 158;
const inset = { left: 54, right: 8, top: 8, bottom: 20 };
const tableRows = 60;
const all = new Set(); // charts share one cursor

function svg(tag, attributes, ...children) {
	const element = document.createElementNS(space, tag);
	for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
	element.append(...children);
	return element;
}

// Chart draws lines: [{label, colour, fill}], where colour is a class of the style sheet. show puts a value in words;
// duration says that values are seconds, whole that they are counts. Where sparse is true, a value that is unknown is
// one that nothing was there to measure: a faint line leads from the value before to the one after.
export class Chart {
	#title;
	#lines;
	#show;
	#duration;
	#whole;
	#sparse;
	#data = null; // times in seconds, then the values of each line
	#latest = [];
	#values;
	#drawing = svg('svg', { class: 'drawing', 'aria-hidden': 'true', height });
	#cursor = svg('g', { class: 'cursor' });
	#area;
	#table;
	#observer;
	#x = () => 0;
	#y = () => 0;
	element;

	constructor({ title, unit, lines, show, duration = false, whole = false, sparse = false }) {
		this.#title = title;
		this.#lines = lines;
		this.#show = show;
		this.#duration = duration;
		this.#whole = whole;
		this.#sparse = sparse;
		this.#values = lines.map(() => h('b', {}, unknown));
		this.#area = h(
			'div',
			{
				class: 'plot',
				role: 'img',
				'aria-label': `${title}: not known yet`,
				pointermove: (e) => this.#point(e),
				pointerleave: () => all.forEach((c) => c.#mark(null)),
			},
			this.#drawing,
		);
		this.#table = h(
			'details',
			{ class: 'alternative', toggle: () => this.#fillTable() },
			h('summary', {}, 'As a table'),
			h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${title} as a table` }),
		);
		this.element = h(
			'figure',
			{ class: 'chart card' },
			h(
				'figcaption',
				{},
				h('h3', {}, title, h('span', { class: 'unit' }, ` ${unit}`)),
				h(
					'ul',
					{ class: 'legend' },
					lines.map((line, i) =>
						h(
							'li',
							{},
							svg(
								'svg',
								{ class: `key ${line.colour} dash-${i}`, 'aria-hidden': 'true', width: 20, height: 8 },
								svg('path', { class: 'line', d: 'M1 4h18' }),
							),
							line.label,
							' ',
							this.#values[i],
						),
					),
				),
			),
			this.#area,
			this.#table,
		);
		this.#observer = new ResizeObserver(() => this.#draw());
		this.#observer.observe(this.#area);
		all.add(this);
	}

	// set draws data: the times in seconds, and for each line its values, null where they are unknown. latest has the
	// present value of each line, where it stands elsewhere on the page too.
	set(data, latest = []) {
		this.#data = data;
		this.#latest = latest;
		this.#draw();
		const words = this.#lines.map((line, i) => {
			const known = data[i + 1].filter((v) => v !== null);
			return known.length
				? `${line.label}: now ${this.#words(this.#last(i))}, at most ${this.#show(Math.max(...known))}`
				: `${line.label}: not known`;
		});
		this.#area.setAttribute('aria-label', `${this.#title}. ${words.join('. ')}.`);
		if (this.#table.open) this.#fillTable();
	}

	remove() {
		this.#observer.disconnect();
		all.delete(this);
	}

	#words(value) {
		return value === null || value === undefined ? unknown : this.#show(value);
	}

	// The newest steps may not be known yet.
	#last(i) {
		if (this.#latest[i] !== undefined) return this.#latest[i];
		return this.#data[i + 1].slice(-3).findLast((v) => v !== null) ?? null;
	}

	#draw() {
		const width = this.#area.clientWidth;
		if (!this.#data || !width) return;
		const [times, ...columns] = this.#data;
		const from = times[0] ?? 0;
		const to = times[times.length - 1] ?? 1;
		const top = Math.max(0, ...columns.flat().filter((v) => v !== null));
		const ticks = marks(top, this.#duration, this.#whole);
		const most = ticks[ticks.length - 1] || 1;
		this.#x = (t) => inset.left + ((t - from) / (to - from || 1)) * (width - inset.left - inset.right);
		this.#y = (v) => height - inset.bottom - (v / most) * (height - inset.top - inset.bottom);
		const grid = ticks.flatMap((v) => [
			svg('line', { class: 'grid', x1: inset.left, x2: width - inset.right, y1: this.#y(v), y2: this.#y(v) }),
			svg('text', { class: 'y', x: inset.left - 7, y: this.#y(v) + 3.5 }, this.#show(v)),
		]);
		const clock = hours(from, to, Math.max(2, Math.floor((width - inset.left) / 84))).map(([t, words]) =>
			svg('text', { class: 'x', x: Math.min(this.#x(t), width - 22), y: height - 4 }, words), // whole
		);
		const lines = this.#lines.map((line, i) =>
			svg('g', { class: `${line.colour} dash-${i}` }, ...this.#path(times, columns[i], line.fill)),
		);
		this.#drawing.setAttribute('width', width);
		this.#drawing.setAttribute('viewBox', `0 0 ${width} ${height}`);
		const none = columns.some((c) => c.some((v) => v !== null))
			? []
			: [svg('text', { class: 'x', x: (inset.left + width) / 2, y: height / 2 }, 'nothing in this time')];
		this.#drawing.replaceChildren(...grid, ...clock, ...lines, ...none, this.#cursor);
		this.#mark(null);
	}

	// path is a line with gaps where values are unknown, and the area below it.
	#path(times, values, filled) {
		let line = '';
		let bridge = '';
		const dots = [];
		let area = '';
		let start = -1;
		values.forEach((v, i) => {
			if (v === null) return;
			const at = `${this.#x(times[i]).toFixed(1)} ${this.#y(v).toFixed(1)}`;
			const alone = i === 0 || values[i - 1] === null;
			if (alone) start = i;
			const end = i === values.length - 1 || values[i + 1] === null;
			if (alone && end) dots.push(svg('circle', { class: 'dot', cx: this.#x(times[i]), cy: this.#y(v), r: 2.5 }));
			else line += alone ? `M${at}` : `L${at}`;
			bridge += bridge ? `L${at}` : `M${at}`;
			area += alone ? `M${this.#x(times[i]).toFixed(1)} ${this.#y(0)}L${at}` : `L${at}`;
			if (end)
				area += `L${this.#x(times[i]).toFixed(1)} ${this.#y(0)}L${this.#x(times[start]).toFixed(1)} ${this.#y(0)}`;
		});
		return [
			...(filled && area ? [svg('path', { class: 'area', d: area })] : []),
			...(this.#sparse ? [svg('path', { class: 'bridge', d: bridge })] : []),
			svg('path', { class: 'line', d: line }),
			...dots,
		];
	}

	#point(e) {
		if (!this.#data) return;
		const x = e.clientX - this.#area.getBoundingClientRect().left;
		const [times] = this.#data;
		let nearest = null;
		times.forEach((t, i) => {
			if (nearest === null || Math.abs(this.#x(t) - x) < Math.abs(this.#x(times[nearest]) - x)) nearest = i;
		});
		all.forEach((c) => c.#mark(nearest));
	}

	// mark shows the values of a step, or the latest ones.
	#mark(index) {
		if (!this.#data) return;
		const at = index === null ? undefined : this.#data[0][index];
		this.#values.forEach((element, i) => {
			element.textContent = this.#words(at === undefined ? this.#last(i) : this.#data[i + 1][index]);
		});
		if (at === undefined) return this.#cursor.replaceChildren();
		const x = this.#x(at);
		const left = x > this.#area.clientWidth - 90;
		this.#cursor.replaceChildren(
			svg('line', { x1: x, x2: x, y1: inset.top, y2: height - inset.bottom }),
			svg(
				'text',
				{ x: left ? x - 5 : x + 5, y: inset.top + 8, 'text-anchor': left ? 'end' : 'start' },
				local(at * 1000, { precise: false }),
			),
			...this.#lines.flatMap((line, i) => {
				const v = this.#data[i + 1][index];
				return v === null || v === undefined
					? []
					: [svg('circle', { class: line.colour, cx: x, cy: this.#y(v), r: 3 })];
			}),
		);
	}

	#fillTable() {
		if (!this.#table.open || !this.#data) return;
		const [times, ...columns] = this.#data;
		const rows = times.map((t, i) =>
			h(
				'tr',
				{},
				h('th', { scope: 'row' }, local(t * 1000, { precise: false })),
				columns.map((c) => h('td', { class: 'number' }, this.#words(c[i]))),
			),
		);
		fill(
			this.#table.lastChild,
			h(
				'table',
				{},
				h('caption', { class: 'visually-hidden' }, `${this.#title}, newest first`),
				h(
					'thead',
					{},
					h(
						'tr',
						{},
						h('th', { scope: 'col' }, 'from'),
						this.#lines.map((line) => h('th', { scope: 'col', class: 'number' }, line.label)),
					),
				),
				h('tbody', {}, rows.slice(-tableRows).reverse()),
			),
		);
	}
}

// marks are round values from 0 to most or beyond. Where all values are 0, the scale goes to 1.
function marks(most, duration, whole) {
	if (!(most > 0)) most = 1;
	const rough = most / 3.5;
	let step = [60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800].find((s) => s >= rough);
	if (!duration || most <= 120 || !step) {
		const power = 10 ** Math.floor(Math.log10(rough));
		step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough) * power;
	}
	if (whole) step = Math.ceil(step);
	const found = [];
	for (let i = 0; (i - 1) * step < most; i++) found.push(i * step);
	return found;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const dayAndClock = new Intl.DateTimeFormat(undefined, {
	weekday: 'short',
	hour: '2-digit',
	minute: '2-digit',
	hourCycle: 'h23',
});
const day = new Intl.DateTimeFormat(undefined, { weekday: 'short', day: 'numeric' });

// hours are round times of the reader's zone between from and to, at most so many, and their names.
function hours(from, to, most) {
	const step =
		[60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800].find(
			(s) => (to - from) / s <= most,
		) ?? 604800;
	const zone = new Date(to * 1000).getTimezoneOffset() * 60;
	const today = new Date(to * 1000).toDateString();
	const found = [];
	for (let t = Math.ceil((from - zone) / step) * step + zone; t <= to; t += step) {
		const d = new Date(t * 1000);
		const midnight = d.getHours() === 0 && d.getMinutes() === 0;
		const other = !found.length && d.toDateString() !== today; // the first of another day names it
		found.push([t, (midnight ? day : other ? dayAndClock : clock).format(d)]);
	}
	return found;
}
