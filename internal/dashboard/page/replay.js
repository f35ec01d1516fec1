// Replay of many dead letters: counts those that the filters choose, asks, and replays them page by page.

import { post, query, read } from './api.js';
import { ask, fill, h, icon, toast } from './dom.js';
import { count, counted, local } from './format.js';

const pageRows = 1000; // as many as one request counts
const countPages = 20; // the question counts so far
const replayRows = 500; // as many as one request replays

// replayAllButton replays all dead letters that question() chooses, which is the query of the list that is shown.
export function replayAllButton(question, done) {
	const label = h('span', {}, 'Replay all…');
	const button = h(
		'button',
		{ type: 'button', class: 'head-button', id: 'replay-all', hidden: true, click: start },
		icon('retry'),
		label,
	);

	async function start() {
		const { status, limit, ...filters } = question();
		button.disabled = true;
		try {
			fill(label, 'Counting…');
			const n = await counts({ status, ...filters });
			fill(label, 'Replay all…');
			button.disabled = false;
			if (await confirmed(n, filters)) {
				button.disabled = true;
				await replay(n, filters);
			}
		} catch (error) {
			toast(`Not counted. ${error.message}`, 'bad');
		}
		fill(label, 'Replay all…');
		button.disabled = false;
		done();
	}

	// replay says what came of it, also where it ends half-way.
	async function replay(n, filters) {
		let replayed = 0;
		try {
			for (let next = query({ ...filters, limit: replayRows }); next;) {
				fill(label, `${count(replayed)} of ${count(n.rows)} replayed…`);
				const answer = await post(`api/dead/replay${next}`);
				replayed += answer.data.replayed;
				next = answer.next && `?${answer.next}`;
			}
			toast(
				replayed
					? `${counted(replayed, 'dead letter')} ${replayed === 1 ? 'is' : 'are'} queued again.`
					: 'Nothing was replayed: somebody else did it before.',
				replayed ? 'good' : 'warn',
			);
		} catch (error) {
			toast(`${count(replayed)} were replayed, and then it failed: ${error.message}`, 'bad');
		}
	}
	return button;
}

// counts counts the rows of a list, as far as that does not take long.
async function counts(filters) {
	let rows = 0;
	let next = query({ ...filters, limit: pageRows });
	for (let page = 0; next && page < countPages; page++) {
		const answer = await read(`api/processing${next}`);
		rows += answer.data.length;
		next = answer.next && `?${answer.next}`;
	}
	return { rows, more: Boolean(next) };
}

function confirmed({ rows, more }, filters) {
	const names = { event_id: 'event', since: 'stored since', until: 'stored before' };
	const chosen = Object.entries(filters).map(([name, value]) => {
		const at = name === 'since' || name === 'until';
		return `${names[name] ?? name} ${at ? local(value, { precise: false }) : value}`;
	});
	const many = more ? `more than ${counted(rows, 'dead letter')}` : counted(rows, 'dead letter');
	return ask({
		title: `Deliver ${many} again?`,
		about: [
			chosen.length ? `Chosen by ${chosen.join(', ')}.` : 'These are all dead letters.',
			h(
				'span',
				{ class: 'muted' },
				'Each has all its attempts again. The destination may get some twice. The audit log says who asked.',
			),
		],
		go: more ? 'Replay them all' : `Replay ${count(rows)}`,
		sign: 'retry',
	}).then((answer) => answer !== null);
}
