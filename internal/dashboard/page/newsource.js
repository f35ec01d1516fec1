// The form that adds a source: its preset, its name, and what its secret will be called.

import { put, read } from './api.js';
import { fill, foreign, h, icon, toast } from './dom.js';

// webhookURL is where a source's provider posts to.
export const webhookURL = (source) =>
	new URL(source === 'default' ? 'webhook' : `webhook/${encodeURIComponent(source)}`, document.baseURI).href;

const slug = /^[a-z0-9][a-z0-9_-]{0,62}$/;
const field = (label, control) => h('label', { class: 'field' }, h('span', { class: 'field-label' }, label), control);
const plain = { spellcheck: 'false', autocomplete: 'off', autocapitalize: 'off' };

// sourceForm calls done with the name of the source once it is added.
export function sourceForm(cancel, done) {
	let presets = [];
	let named = false; // the reader chose the name
	let called = false; // and that of the secret
	const preset = h('select', { name: 'preset', required: true, change: chosen });
	const name = h('input', {
		...plain,
		type: 'text',
		name: 'name',
		required: true,
		maxlength: '63',
		input: () => {
			named = name.value !== '';
			draw();
		},
	});
	const kind = h(
		'select',
		{
			name: 'kind',
			change: () => {
				called = false;
				draw();
			},
		},
		h('option', { value: 'file' }, 'a file in SECRET_DIR'),
		h('option', { value: 'env' }, 'an environment variable'),
	);
	const secret = h('input', {
		...plain,
		type: 'text',
		name: 'secret',
		required: true,
		maxlength: '200',
		input: () => {
			called = secret.value !== '';
			draw();
		},
	});
	const secretFields = h('div', { class: 'pair' }, field('its secret is in', kind), field('called', secret));
	const more = h('textarea', { ...plain, name: 'more', rows: '4', placeholder: '{"verify": […]}', input: draw });
	const outlook = h('dl', { class: 'facts' });
	const problem = h('div', { class: 'field-problem', role: 'alert' });
	const add = h('button', { type: 'submit', class: 'primary' }, icon('plus'), 'Add the source');

	const isOpen = (p) => Boolean(p?.config.verify?.length) && p.config.verify.every((m) => m.scheme === 'none');
	const current = () => presets.find((p) => p.name === preset.value);
	const reference = () => `${kind.value}:${secret.value}`;

	// chosen proposes the preset's name for the source, and that of the source for the secret.
	function chosen() {
		if (!named) name.value = preset.value;
		draw();
	}

	function draw() {
		const open = isOpen(current());
		if (!called)
			secret.value =
				kind.value === 'file' ? name.value : `${name.value.toUpperCase().replace(/[^A-Z0-9]/g, '_')}_WEBHOOK_SECRET`;
		secretFields.hidden = open;
		secret.required = !open;
		const valid = slug.test(name.value);
		const fact = (label, value) => [h('dt', {}, label), h('dd', {}, value)];
		fill(
			outlook,
			fact('name', valid ? h('code', {}, name.value) : 'a to z, 0 to 9, _ and -; it cannot be changed later'),
			fact('address', valid ? h('code', { class: 'wide' }, webhookURL(name.value)) : '—'),
			fact(
				'secret',
				open
					? 'none: anyone can send'
					: [
							h('code', {}, foreign(reference())),
							kind.value === 'file'
								? '. Spine reads that file, also when it changes.'
								: '. SECRET_ENV says which variables may be named.',
						],
			),
		);
	}

	// settings are those of PUT /api/sources. It throws where the text of further settings is no object.
	function settings() {
		const further = more.value.trim() ? JSON.parse(more.value) : {};
		if (further === null || typeof further !== 'object' || Array.isArray(further))
			throw new Error('It is not an object.');
		const all = { preset: preset.value, ...further };
		if (!isOpen(current()) && !('secrets' in further)) all.secrets = [reference()];
		return JSON.stringify(all);
	}

	async function submit(e) {
		e.preventDefault();
		if (!slug.test(name.value)) return tell('The name must begin with a to z or 0 to 9, and go on with these, _ or -.');
		let body;
		try {
			body = settings();
		} catch (error) {
			return tell(`The further settings are not JSON: ${error.message}`);
		}
		add.disabled = true;
		try {
			const path = `api/sources/${encodeURIComponent(name.value)}`;
			if (await exists(path)) {
				tell(`There is a source ${name.value} already. Choose another name.`);
			} else {
				await put(path, body);
				toast(`The source ${name.value} is added. Its card says what to enter at the provider.`);
				done(name.value);
			}
		} catch (error) {
			tell(error.message, error.errors);
		}
		add.disabled = false;
	}

	async function exists(path) {
		try {
			await read(path);
			return true;
		} catch (error) {
			if (error.status === 404) return false;
			throw error;
		}
	}

	function tell(words, errors = []) {
		fill(
			problem,
			h('p', {}, foreign(words, { limit: 300 })),
			errors.length
				? h(
						'ul',
						{ class: 'places-list' },
						errors.map((e) => h('li', {}, h('code', {}, foreign(e.field ?? '')), ' ', foreign(e.detail, { limit: 300 }))),
					)
				: null,
		);
	}

	read('api/presets').then(
		({ data }) => {
			presets = data;
			fill(
				preset,
				data.map((p) => h('option', { value: p.name }, p.title)),
			);
			preset.value = 'github';
			chosen();
		},
		(error) => tell(error.message),
	);
	return h(
		'form',
		{ class: 'card source-form', id: 'source-form', 'aria-labelledby': 'h-add', submit },
		h('h2', { id: 'h-add' }, 'Add a source'),
		h('div', { class: 'pair' }, field('whose requests', preset), field('name', name)),
		secretFields,
		outlook,
		h(
			'details',
			{},
			h('summary', {}, 'Further settings, as JSON'),
			field('as spine apply takes them, such as verify, id, type and limits', more),
		),
		problem,
		h('div', { class: 'actions' }, add, h('button', { type: 'button', class: 'quiet', click: cancel }, 'Cancel')),
	);
}
