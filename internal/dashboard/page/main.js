// The page. The view stands in the address, after #, so that it can be shared and Back works.

import { read } from './api.js';
import { desk } from './desk.js';
import { fill, foreign, h, icon, say } from './dom.js';
import { event } from './event.js';
import { redate, tick } from './format.js';
import { list } from './lists.js';
import { Live } from './live.js';
import { overview } from './overview.js';
import { request } from './rejected.js';
import { eventLink, searchBox } from './search.js';
import { sources } from './sources.js';

const views = {
	'': { label: 'Overview', sign: 'home', make: overview },
	events: { label: 'Events', sign: 'inbox', make: (app, p) => list(app, 'events', p) },
	attempts: { label: 'Attempts', sign: 'send', make: (app, p) => list(app, 'attempts', p) },
	audit: { label: 'Audit', sign: 'list', make: (app, p) => list(app, 'audit', p) },
	dead: { label: 'Dead letters', sign: 'dead', make: (app, p) => list(app, 'dead', p) },
	sources: { label: 'Sources', sign: 'plug', make: sources },
	rejected: { label: 'Rejected', sign: 'alert', make: (app, p) => list(app, 'rejected', p) },
	conflicts: { label: 'Conflicts', sign: 'copy', make: (app, p) => list(app, 'conflicts', p) },
	test: { label: 'Test desk', sign: 'flask', make: desk },
	event: { make: event, within: 'events' },
	request: { make: request, within: 'rejected' },
};

// nowhere is the view of an address that no view has.
function nowhere() {
	const heading = h('h1', { tabindex: '-1' }, 'There is nothing here');
	const element = h(
		'div',
		{ class: 'view nowhere' },
		heading,
		h(
			'p',
			{ class: 'notice warn' },
			icon('alert'),
			h('span', {}, 'No view has the address ', foreign(location.hash), '.'),
		),
		h('p', {}, h('a', { class: 'button', href: '#/' }, icon('home'), 'Overview')),
	);
	return { element, heading, title: 'Nothing here', update() {}, leave() {} };
}

const byID = (id) => document.getElementById(id);
const main = byID('main');
const live = new Live();
let names = { sources: ['default'], destinations: ['default'], types: [] };
let namesAt = -Infinity;
const namesEvery = 10000; // ms

const app = {
	live,
	go(hash) {
		location.hash = hash;
	},
	// replace changes the address without a new entry in the history.
	replace(name, parameters) {
		history.replaceState(history.state, '', `#/${name}?${new URLSearchParams(parameters)}`);
	},
	// names are the sources, destinations and types that a filter can choose. learn reads them again.
	names: () => names,
	async learn() {
		if (performance.now() - namesAt < namesEvery) return;
		namesAt = performance.now();
		try {
			({ data: names } = await read('api/names'));
		} catch {
			/* a filter also takes other values */
		}
	},
};

let shown = null; // {name, hash, view}
const kept = new Map(); // name → the same, with scroll: views to which the reader may come back

function parse() {
	const hash = location.hash.replace(/^#\/?/, '');
	const cut = hash.indexOf('?');
	const name = cut < 0 ? hash : hash.slice(0, cut);
	return { name, hash, parameters: new URLSearchParams(cut < 0 ? '' : hash.slice(cut + 1)) };
}

function route() {
	const { name, hash, parameters } = parse();
	const known = Object.hasOwn(views, name) ? views[name] : { make: nowhere, within: 'nowhere' };
	if (shown && shown.name === name && !known.within) {
		if (shown.hash === hash) return;
		shown.hash = hash;
		shown.view.update(parameters);
		return;
	}
	const first = !shown;
	if (shown) {
		if (shown.view.keeps) {
			shown.scroll = window.scrollY;
			shown.view.rest();
			kept.get(shown.name)?.view.leave();
			kept.set(shown.name, shown);
		} else {
			shown.view.leave();
		}
	}
	const back = kept.get(name);
	kept.delete(name);
	if (back && (back.hash === hash || name === 'test')) {
		shown = back;
		fill(main, back.view.element);
		back.view.wake();
		redate();
		window.scrollTo({ top: back.scroll, behavior: 'instant' });
	} else {
		back?.view.leave();
		shown = { name, hash, view: known.make(app, parameters) };
		fill(main, shown.view.element);
		window.scrollTo({ top: 0, behavior: 'instant' });
	}
	document.title = `${shown.view.title} · Spine`;
	for (const link of byID('nav').querySelectorAll('a')) {
		if (link.dataset.view !== (known.within ?? name)) link.removeAttribute('aria-current');
		else link.setAttribute('aria-current', known.within ? 'true' : 'page');
	}
	if (!first) shown.view.heading.focus({ preventScroll: true });
}

// The frame: navigation, search, theme, connection.

fill(
	byID('nav'),
	h(
		'ul',
		{},
		Object.entries(views)
			.filter(([, v]) => v.label)
			.map(([name, v]) =>
				h('li', {}, h('a', { href: `#/${name}`, 'data-view': name }, icon(v.sign), h('span', {}, v.label))),
			),
	),
);

const search = searchBox({
	label: 'Find an event by its id',
	placeholder: 'Find an event by its id',
	hint: '/',
	chosen(choice) {
		if (choice.event_id !== undefined) app.go(eventLink(choice.event_id, choice.source));
		else if (choice.text.trim()) app.go(eventLink(choice.text, ''));
		search.input.blur();
	},
});
fill(byID('find'), search.element);

document.addEventListener('keydown', (e) => {
	if (e.key !== '/' || e.ctrlKey || e.metaKey || e.altKey || e.target.closest('input, textarea, select, dialog'))
		return;
	e.preventDefault();
	search.input.focus();
	search.input.select();
});

byID('skip').addEventListener('click', (e) => {
	e.preventDefault(); // the part after # names the view
	main.focus();
});

const themes = { auto: ['auto', 'as the system'], light: ['sun', 'light'], dark: ['moon', 'dark'] };
function theme() {
	const set = document.documentElement.dataset.theme;
	return set === 'light' || set === 'dark' ? set : 'auto';
}
function drawTheme() {
	const [sign, words] = themes[theme()];
	const button = byID('theme');
	fill(button, icon(sign));
	button.setAttribute('aria-label', `Colours: ${words}. Change`);
	button.title = `Colours: ${words}`;
}
byID('theme').addEventListener('click', () => {
	const names = Object.keys(themes);
	const next = names[(names.indexOf(theme()) + 1) % names.length];
	if (next === 'auto') delete document.documentElement.dataset.theme;
	else document.documentElement.dataset.theme = next;
	try {
		if (next === 'auto') localStorage.removeItem('spine.theme');
		else localStorage.setItem('spine.theme', next);
	} catch {
		/* storage is switched off: it lasts as long as the page */
	}
	drawTheme();
	say(`Colours: ${themes[next][1]}`);
});

live.watch((state) => {
	const box = byID('live');
	box.dataset.state = state;
	fill(
		box,
		h('span', { class: 'live-dot', 'aria-hidden': 'true' }),
		{ live: 'live', connecting: 'connecting…', reconnecting: 'reconnecting…' }[state],
	);
});

drawTheme();
byID('app').hidden = false;
window.addEventListener('hashchange', route);
route();
live.start();
setInterval(() => {
	if (!document.hidden) tick();
}, 1000);
