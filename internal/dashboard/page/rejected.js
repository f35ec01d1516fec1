// Rejected requests: the view of one, and the button that replays it.

import { failureNotice, post, query, read, Refresher } from './api.js';
import { ask, badge, copyButton, fill, foreign, h, icon, toast } from './dom.js';
import { bytes, time } from './format.js';
import { eventLink } from './search.js';

const longText = 20000; // characters of a body that are shown at first
const patience = 30000; // ms to wait for a replay

// again replays a request and says how that went.
async function again(r, trust, done) {
	try {
		await post(`api/rejected/${r.id}/replay${query({ trust: trust ? '1' : '' })}`);
		for (const end = performance.now() + patience; performance.now() < end;) {
			await new Promise((resolve) => setTimeout(resolve, 300));
			const { data } = await read(`api/rejected/${r.id}`);
			if (data.state === 'requested') continue;
			if (data.state === 'taken_in')
				toast(
					data.event_id
						? [
								'It is stored as ',
								h('a', { href: eventLink(data.event_id, data.source) }, foreign(data.event_id, { limit: 60 })),
								'.',
							]
						: 'It is stored.',
				);
			else toast(`It was rejected again. ${data.note ?? ''}`, 'warn');
			return;
		}
		toast('It was not replayed yet. Is a process running that receives webhooks?', 'warn');
	} catch (error) {
		toast(`Not replayed. ${error.message}`, 'bad');
	} finally {
		done?.();
	}
}

// againButton replays a request, as if it came now.
export function againButton(r, { small = false, trust = false, done } = {}) {
	const button = h(
		'button',
		{
			type: 'button',
			class: small ? 'small' : '',
			'data-again': String(r.id),
			click: async () => {
				const yes = await ask({
					title: trust ? 'Replay this request without verifying it?' : 'Replay this request?',
					about: [
						trust
							? 'Nothing proves who sent it. If it is accepted, its event is stored and delivered.'
							: 'It is verified as if it came now. If it is accepted, its event is stored and delivered.',
					],
					go: trust ? 'Replay unverified' : 'Replay',
					sign: 'retry',
				});
				if (yes === null) return;
				button.disabled = true;
				await again(r, trust, done);
				button.disabled = false;
			},
		},
		icon('retry'),
		trust ? 'Replay unverified' : 'Replay',
	);
	return button;
}

// request is the view of one request.
export function request(app, parameters) {
	const id = parameters.get('id') ?? '';
	const heading = h('h1', { tabindex: '-1' }, `Rejected request ${/^\d+$/.test(id) ? id : ''}`);
	const notice = h('div', { class: 'notice-space' });
	const content = h('div', { class: 'stack' });
	const element = h(
		'div',
		{ class: 'view' },
		h('p', { class: 'crumb' }, h('a', { href: '#/rejected' }, '← Rejected')),
		heading,
		notice,
		content,
	);
	let sign = '';

	const refresher = new Refresher(async (signal) => {
		try {
			const { data, text } = await read(`api/rejected/${encodeURIComponent(id)}`, signal);
			fill(notice);
			if (text === sign) return;
			sign = text;
			draw(data);
		} catch (error) {
			if (signal.aborted) throw error;
			fill(notice, failureNotice(error, 0, null, { tone: error.status === 404 ? 'warn' : 'bad' }));
			if (error.status !== 404) throw error;
		}
	});

	function draw(r) {
		const fact = (name, value) => [h('dt', {}, name), h('dd', {}, value)];
		const text = r.body ?? null;
		const shown = text ?? r.body_base64 ?? '';
		const headers = Object.entries(r.headers ?? {})
			.flatMap(([name, values]) => values.map((v) => `${name}: ${v}`))
			.join('\n');
		const block = (label, value) =>
			h(
				'pre',
				{ class: 'code-block wrap', tabindex: '0', role: 'region', 'aria-label': label },
				foreign(value, { limit: longText, lines: true }),
			);
		const done = () => refresher.now();
		fill(
			content,
			h(
				'section',
				{ class: 'card spaced' },
				h('h2', {}, 'Why'),
				h('p', {}, foreign(r.detail, { limit: 500 })),
				h(
					'dl',
					{ class: 'facts' },
					fact('answer', [h('span', { class: 'code' }, String(r.status)), ' ', h('code', {}, r.cause)]),
					fact('source', h('a', { href: `#/rejected${query({ source: r.source })}` }, foreign(r.source))),
					fact('received', time(r.at)),
					fact('from', foreign(r.remote)),
					fact('state', badge(r.state)),
					r.settled_at ? fact('replayed', time(r.settled_at)) : null,
					r.note ? fact('result', foreign(r.note, { limit: 500 })) : null,
					r.event_id ? fact('event', h('a', { href: eventLink(r.event_id, r.source) }, foreign(r.event_id))) : null,
				),
				r.body_bytes == null
					? null
					: h(
							'p',
							{ class: 'muted' },
							`${r.size ? 'Only the beginning of its body is kept' : 'Its body was not read'}, so it cannot be replayed.`,
						),
				h(
					'p',
					{ class: 'muted', hidden: r.body_bytes != null },
					'Replay verifies it with the present settings and secrets. Spine does not keep tokens and passwords: ',
					'a request that carried one can only be replayed unverified, if you are sure who sent it.',
				),
				r.body_bytes == null
					? h('div', { class: 'actions' }, againButton(r, { done }), againButton(r, { trust: true, done }))
					: null,
			),
			h(
				'section',
				{ class: 'card' },
				h('h2', {}, 'Headers ', h('span', { class: 'aside' }, copyButton(headers))),
				block('Headers', `${r.method} ${r.target}\n${headers}`),
			),
			h(
				'section',
				{ class: 'card' },
				h(
					'h2',
					{},
					'Body ',
					h(
						'span',
						{ class: 'aside' },
						h(
							'span',
							{ class: 'muted' },
							text === null && shown ? 'base64, ' : '',
							bytes(r.size),
							r.body_bytes != null ? ` of ${bytes(r.body_bytes)}` : '',
						),
						copyButton(shown),
					),
				),
				shown
					? block('Body', shown)
					: h('p', { class: 'none' }, r.body_bytes != null ? 'It was not read.' : 'There is none.'),
			),
		);
	}

	refresher.request();
	return {
		element,
		heading,
		title: 'Rejected request',
		update() {},
		leave() {
			refresher.stop();
		},
	};
}
