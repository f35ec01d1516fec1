// The search for an event by the beginning of its id. It makes suggestions: the combobox pattern of ARIA, with a list
// of options.

import { read, query } from './api.js';
import { badge, fill, foreign, h, icon } from './dom.js';
import { time } from './format.js';

let boxes = 0;

export const eventLink = (id, source) => `#/event${query({ id, source })}`;

// searchBox calls chosen with an event, {event_id, source}, or with the text as it stands, {text}.
export function searchBox({ label, placeholder, chosen, value = '', hint }) {
	const name = `search-${++boxes}`;
	const list = h('ul', { class: 'options', role: 'listbox', id: `${name}-list`, 'aria-label': 'Events', hidden: true });
	const input = h('input', {
		type: 'search',
		id: name,
		value,
		placeholder,
		role: 'combobox',
		autocomplete: 'off',
		autocapitalize: 'off',
		spellcheck: 'false',
		maxlength: '255',
		'aria-label': label,
		'aria-expanded': 'false',
		'aria-controls': `${name}-list`,
		'aria-autocomplete': 'list',
		input: ask,
		keydown: key,
		blur: () =>
			setTimeout(() => {
				if (document.activeElement !== input) close();
			}, 150),
		focus: () => {
			if (input.value) ask();
		},
	});
	let rows = [];
	let at = -1;
	let abort = null;
	let timer = 0;

	function ask() {
		clearTimeout(timer);
		timer = setTimeout(load, 120);
	}

	async function load() {
		abort?.abort();
		const text = input.value;
		if (!text.trim()) return close();
		abort = new AbortController();
		try {
			const answer = await read(`api/search${query({ q: text })}`, abort.signal);
			if (document.activeElement !== input) return;
			rows = answer.data.slice(0, 12);
			at = -1;
			input.removeAttribute('aria-activedescendant');
			fill(
				list,
				rows.length
					? rows.map(option)
					: h('li', { class: 'none', role: 'option', 'aria-disabled': 'true' }, 'No id begins like this.'),
			);
			open();
		} catch (error) {
			if (error.name === 'AbortError') return;
			rows = [];
			fill(list, h('li', { class: 'none', role: 'option', 'aria-disabled': 'true' }, error.message));
			open();
		}
	}

	function option(row, i) {
		return h(
			'li',
			{
				role: 'option',
				id: `${name}-${i}`,
				'aria-selected': 'false',
				mousedown: (e) => {
					e.preventDefault();
					choose(row);
				},
			},
			h('span', { class: 'option-id' }, foreign(row.event_id, { limit: 80 })),
			h(
				'span',
				{ class: 'option-more' },
				row.status ? badge(row.status) : null,
				foreign(row.event_type, { limit: 40 }),
				h('span', {}, row.source),
				time(row.created_at, { precise: false }),
			),
		);
	}

	function open() {
		list.hidden = false;
		input.setAttribute('aria-expanded', 'true');
	}

	function close() {
		clearTimeout(timer);
		abort?.abort(); // an answer on its way must not open it again
		list.hidden = true;
		at = -1;
		input.setAttribute('aria-expanded', 'false');
		input.removeAttribute('aria-activedescendant');
	}

	function choose(row) {
		input.value = row.event_id;
		close();
		chosen(row);
	}

	function key(e) {
		if (e.key === 'Escape') {
			if (!list.hidden) {
				e.preventDefault();
				close();
			}
		} else if (e.key === 'ArrowDown' || e.key === 'ArrowUp') {
			if (!rows.length) return;
			e.preventDefault();
			at = (at + (e.key === 'ArrowDown' ? 1 : -1) + rows.length) % rows.length;
			[...list.children].forEach((li, i) => li.setAttribute('aria-selected', String(i === at)));
			list.children[at].scrollIntoView({ block: 'nearest' });
			input.setAttribute('aria-activedescendant', `${name}-${at}`);
		} else if (e.key === 'Enter') {
			e.preventDefault();
			if (at >= 0) choose(rows[at]);
			else {
				close();
				chosen({ text: input.value });
			}
		}
	}

	return {
		element: h(
			'div',
			{ class: 'combo' },
			icon('search'),
			input,
			hint ? h('kbd', { 'aria-hidden': 'true' }, hint) : null,
			list,
		),
		input,
	};
}
