// Elements. Text from senders and destinations becomes text nodes and attributes that are not code. No function here
// parses markup.

const names = { class: 'className', for: 'htmlFor' };
const forbidden = /^(on|style$|srcdoc$)/i;

// h makes an element. A property that is a function listens to the event of that name. True sets an attribute, false
// leaves it out. Children are elements, texts, arrays of these, or nothing.
export function h(tag, properties, ...children) {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(properties ?? {})) set(element, name, value);
	add(element, children);
	return element;
}

function set(element, name, value) {
	if (typeof value === 'function') element.addEventListener(name, value);
	else if (value === false || value === null || value === undefined) return;
	else if (name === 'value') element.value = value;
	else if (names[name]) element[names[name]] = value;
	else if (forbidden.test(name)) throw new Error(`no ${name} from here`);
	else if (name === 'href' && !/^(#|https?:|api\/|dashboard\/|mailto:)/.test(value))
		throw new Error('no link to there');
	else element.setAttribute(name, value === true ? '' : value);
}

function add(element, children) {
	for (const child of children) {
		if (Array.isArray(child)) add(element, child);
		else if (child !== null && child !== undefined && child !== false) element.append(child);
	}
}

// fill gives an element new children.
export function fill(element, ...children) {
	element.replaceChildren();
	add(element, children);
	return element;
}

// Characters that are invisible, or that change how their neighbours look: control characters, changes of writing
// direction, joiners, halves of characters.
const unseen = new RegExp(
	[
		/[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/,
		/[\ud800-\udbff](?![\udc00-\udfff])/,
		/(?<![\ud800-\udbff])[\udc00-\udfff]/,
	]
		.map((part) => part.source)
		.join('|'),
	'g',
);
const unseenButLines = new RegExp(`(?![\\n\\t])(?:${unseen.source})`, 'g');

function seen(character) {
	const code = character.charCodeAt(0);
	if (code < 0x20) return String.fromCharCode(0x2400 + code);
	if (code === 0x7f) return '\u2421';
	return `\\u${code.toString(16).padStart(4, '0')}`;
}

// foreign shows text from outside: apart from the text around it (bdi), without invisible characters, and cut to limit
// characters. A button shows the whole text.
export function foreign(text, { limit = 200, lines = false } = {}) {
	const whole = String(text ?? '');
	const element = h('bdi', { class: 'foreign' });
	if (whole.length <= limit) {
		fillVisible(element, whole, lines);
		return element;
	}
	const cut = end(whole, limit);
	const more = h('button', { type: 'button', class: 'more', 'aria-expanded': 'false' }, 'more');
	const show = (all) => {
		element.replaceChildren();
		fillVisible(element, all ? whole : whole.slice(0, cut), lines);
		if (!all) element.append('…');
		more.textContent = all ? 'less' : 'more';
		more.setAttribute('aria-expanded', String(all));
	};
	more.addEventListener('click', () => show(more.textContent === 'more'));
	show(false);
	return h('span', {}, element, ' ', more);
}

// shortName shows an id from outside in a link, where no button can be: cut to what tells it apart, and whole on hover.
export function shortName(text, limit = 40) {
	const most = /^sha256:/.test(text) ? Math.min(limit, 19) : limit;
	if (text.length <= most) return foreign(text, { limit: most });
	return h('span', { title: text }, foreign(`${text.slice(0, end(text, most - 1))}…`, { limit: most }));
}

// end is where to cut text so that no character is split.
function end(text, limit) {
	const code = text.charCodeAt(limit - 1);
	return code >= 0xd800 && code <= 0xdbff ? limit - 1 : limit;
}

function fillVisible(element, text, lines) {
	const pattern = lines ? unseenButLines : unseen;
	let at = 0;
	for (const match of text.matchAll(pattern)) {
		if (match.index > at) element.append(text.slice(at, match.index));
		const code = match[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, '0');
		element.append(h('span', { class: 'ctl', title: `U+${code}` }, seen(match[0])));
		at = match.index + match[0].length;
	}
	if (at < text.length) element.append(text.slice(at));
}

const shapes = {
	check: 'M3 8.5l3.2 3.2L13 4.8',
	cross: 'M4 4l8 8M12 4l-8 8',
	clock: 'M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8zM8 4.6V8l2.4 1.6',
	run: 'M2 8h9M8 4.5 11.5 8 8 11.5M13.8 3v10',
	retry: 'M13 8a5 5 0 1 1-1.6-3.7M13.2 1.8v3h-3',
	dead: 'M5.4 1.8h5.2l3.6 3.6v5.2l-3.6 3.6H5.4l-3.6-3.6V5.4zM6 6l4 4M10 6l-4 4',
	dot: 'M8 6.6a1.4 1.4 0 1 0 0 2.8 1.4 1.4 0 0 0 0-2.8z',
	pause: 'M5.5 3.5v9M10.5 3.5v9',
	alert: 'M8 2 14.4 13.4H1.6zM8 6.4v3.2M8 11.6v.1',
	search: 'M7 2.2a4.8 4.8 0 1 0 0 9.6 4.8 4.8 0 0 0 0-9.6zM10.6 10.6 14 14',
	copy: 'M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3',
	sun: 'M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM8 1v1.4M8 13.6V15M1 8h1.4M13.6 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1',
	moon: 'M13.4 9.6A5.8 5.8 0 0 1 6.4 2.6a5.8 5.8 0 1 0 7 7z',
	auto: 'M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8zM8 2v12M10 3v10M12 5v6',
	home: 'M2 13.5h12M3.5 11V8.5M6.5 11V4M9.5 11V6.5M12.5 11V2.5',
	inbox: 'M2 9.5 4 3h8l2 6.5V13H2zM2 9.5h3.5L6.5 11h3l1-1.5H14',
	list: 'M5.5 4H14M5.5 8H14M5.5 12H14M2.2 4h.6M2.2 8h.6M2.2 12h.6',
	plug: 'M8 14v-3M4.5 5.5h7V8A3.5 3.5 0 0 1 8 11.5 3.5 3.5 0 0 1 4.5 8zM6 5.5V2M10 5.5V2',
	flask: 'M6 2h4M6.8 2v4.4L2.8 13.8h10.4L9.2 6.4V2M4.8 10.4h6.4',
	plus: 'M8 3v10M3 8h10',
	send: 'M14 2 7.2 8.8M14 2 9.8 14 7.2 8.8 2 6.2z',
};

// icon draws a small sign. The word beside it says the same.
export function icon(name) {
	const space = 'http://www.w3.org/2000/svg';
	const svg = document.createElementNS(space, 'svg');
	for (const [key, value] of Object.entries({
		viewBox: '0 0 16 16',
		class: 'icon',
		'aria-hidden': 'true',
		focusable: 'false',
	}))
		svg.setAttribute(key, value);
	const path = document.createElementNS(space, 'path');
	path.setAttribute('d', shapes[name]);
	svg.append(path);
	return svg;
}

// statusWords is a status, or a state of a rejected request, as people read it.
export const statusWords = (status) => (status === 'refused' ? 'rejected again' : status.replaceAll('_', ' '));

// badge is a status as a sign and a word.
export function badge(status) {
	const [sign, tone] = {
		pending: ['clock', 'wait'],
		processing: ['run', 'run'],
		completed: ['check', 'good'],
		failed: ['retry', 'warn'],
		dead: ['dead', 'bad'],
		success: ['check', 'good'],
		failure: ['cross', 'bad'],
		accepted: ['check', 'good'],
		deduplicated: ['check', 'wait'],
		conflict: ['alert', 'warn'],
		kept: ['inbox', 'warn'],
		requested: ['clock', 'wait'],
		taken_in: ['check', 'good'],
		refused: ['cross', 'bad'],
	}[status] ?? ['dot', 'wait'];
	return h('span', { class: `badge ${tone}`, 'data-status': status }, icon(sign), foreign(statusWords(status)));
}

// say makes a screen reader speak a sentence.
export function say(sentence) {
	const region = document.getElementById('say');
	region.textContent = '';
	requestAnimationFrame(() => {
		region.textContent = sentence;
	});
}

// toast shows and speaks the result of what the reader has done.
export function toast(sentence, tone = 'good') {
	const box = h(
		'div',
		{ class: `toast ${tone}` },
		icon(tone === 'good' ? 'check' : 'alert'),
		h('span', {}, sentence),
		h(
			'button',
			{ type: 'button', class: 'quiet icon-only', 'aria-label': 'Dismiss', click: () => box.remove() },
			icon('cross'),
		),
	);
	document.getElementById('toasts').append(box);
	say(box.textContent);
	setTimeout(() => box.remove(), 8000);
}

// ask asks before a change that cannot be taken back. It resolves to the text of its field, which is '' where it has
// none, or to null where the reader cancels. Then the focus returns to where it was.
export function ask({ title, about = [], go, sign = 'check', field = '' }) {
	const before = document.activeElement;
	const input = field ? h('input', { type: 'text', name: 'answer', maxlength: '300', autocomplete: 'off' }) : null;
	const yes = h('button', { type: 'submit', class: 'primary', value: 'go' }, icon(sign), go);
	const dialog = h(
		'dialog',
		{ class: 'dialog', 'aria-labelledby': 'ask-title' },
		h(
			'form',
			{ method: 'dialog' },
			h('h2', { id: 'ask-title' }, h('span', {}, title)),
			about.map((part) => h('p', {}, part)),
			input ? h('label', { class: 'field' }, h('span', { class: 'field-label' }, field), input) : null,
			h(
				'div',
				{ class: 'actions' },
				h('button', { type: 'button', click: () => dialog.close('') }, 'Cancel'), // Enter is no Cancel
				yes,
			),
		),
	);
	document.body.append(dialog);
	dialog.showModal();
	(input ?? yes).focus();
	return new Promise((resolve) => {
		dialog.addEventListener('close', () => {
			dialog.remove();
			before?.focus();
			resolve(dialog.returnValue === 'go' ? (input?.value.trim() ?? '') : null);
		});
	});
}

// copyButton puts text on the clipboard. Browsers offer their clipboard only to pages that came over TLS or from this
// machine. The older way works elsewhere.
export function copyButton(text, label = 'Copy') {
	const button = h('button', { type: 'button', class: 'quiet small', click: copy }, icon('copy'), h('span', {}, label));
	async function copy() {
		const value = typeof text === 'function' ? text() : text;
		let done = false;
		try {
			await navigator.clipboard.writeText(value);
			done = true;
		} catch {
			const area = h('textarea', { class: 'visually-hidden', 'aria-hidden': 'true', value });
			document.body.append(area);
			area.select();
			done = document.execCommand('copy');
			area.remove();
			button.focus();
		}
		button.lastChild.textContent = done ? 'Copied' : 'Not allowed';
		say(done ? 'Copied' : 'The browser does not allow copying');
		setTimeout(() => {
			button.lastChild.textContent = label;
		}, 1500);
	}
	return button;
}
