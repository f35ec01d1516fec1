// Who sends: when each source sent something last, how fast, and how to send to
// it.

import { advice, query, read, Refresher } from './api.js';
import { copyButton, fill, foreign, h, icon } from './dom.js';
import { age, coarse, count, now, setNow, short } from './format.js';

const sample = 50; // newest events from which a source's rate is taken

export const webhookURL = (source) => new URL(source === 'default' ? 'webhook' : `webhook/${encodeURIComponent(source)}`, document.baseURI).href;

export function sources(app) {
  const heading = h('h1', { tabindex: '-1' }, 'Sources');
  const notice = h('div', { class: 'notice-space' });
  const cards = h('div', { class: 'source-cards' });
  const element = h('div', { class: 'view' }, heading,
    h('p', { class: 'lead' }, 'A source is whoever sends webhooks to one address. An event is stored once for each id within its source.'), notice, cards);
  const drawn = new Map();
  let overview = null;
  let failure = null;
  const rates = new Map();

  const refresher = new Refresher(async (signal) => {
    try {
      const { data } = await read(`api/overview${query({ range: '15m' })}`, signal);
      setNow(data.at);
      overview = data;
      failure = null;
    } catch (error) {
      if (!signal.aborted) failure = error;
      requestAnimationFrame(draw);
      throw error;
    }
    requestAnimationFrame(draw);
    for (const s of shown()) {
      if (!s.last_arrival_at) continue;
      try {
        const { data, next } = await read(`api/events${query({ source: s.source, limit: sample })}`, signal);
        rates.set(s.source, rateOf(data, next));
      } catch (error) {
        if (signal.aborted) throw error;
        rates.delete(s.source);
      }
      requestAnimationFrame(draw);
    }
  }, 3000);

  function shown() {
    const list = overview?.sources ?? [];
    return [list.find((s) => s.source === 'default') ?? { source: 'default', last_arrival_at: null }, ...list.filter((s) => s.source !== 'default')];
  }

  function draw() {
    fill(notice, failure ? h('div', { class: 'notice bad', role: 'alert' }, icon('alert'), h('div', {}, h('p', {}, h('strong', {}, failure.message)), h('p', {}, advice(failure))), h('button', { type: 'button', click: () => refresher.now() }, 'Try again now')) : null);
    if (!overview) return;
    for (const s of shown()) {
      let card = drawn.get(s.source);
      if (!card) {
        card = sourceCard(s.source);
        drawn.set(s.source, card);
        cards.append(card.element);
      }
      card.set(s, rates.get(s.source));
    }
  }

  const stopListening = app.live.listen(() => refresher.request());
  refresher.request();
  return { element, heading, title: 'Sources', update() {}, leave() { stopListening(); refresher.stop(); } };
}

// rateOf says how fast the newest events came, from the time that they span.
function rateOf(rows, next) {
  if (!rows.length) return null;
  const seconds = Math.max(0.001, (now() - Date.parse(rows[rows.length - 1].created_at)) / 1000);
  if (!next && rows.length < sample) return `${count(rows.length)} in all`;
  const perSecond = rows.length / seconds;
  const rate = perSecond >= 1 ? `${short(perSecond)} a second` : perSecond * 60 >= 1 ? `${short(perSecond * 60)} a minute` : `${short(perSecond * 3600)} an hour`;
  return `${rate}; the newest ${count(rows.length)} within ${coarse(seconds)}`;
}

function sourceCard(source) {
  const url = webhookURL(source);
  const body = JSON.stringify({ event_id: 'test-001', event_type: 'user.created', occurred_at: '2024-01-30T12:00:00Z', payload: { user_id: 123 } });
  const curl = `curl ${url} --json '${body}'`;
  const last = h('dd', {}, '—');
  const rate = h('dd', {}, '—');
  const element = h('section', { class: 'card source', 'data-source': source },
    h('h2', {}, foreign(source), ' ', h('span', { class: 'aside' }, h('a', { href: `#/events${query({ source })}` }, 'events'))),
    h('dl', { class: 'facts' }, h('dt', {}, 'last arrival'), last, h('dt', {}, 'rate'), rate),
    h('h3', {}, 'Send to ', copyButton(url)), h('pre', { class: 'code-block wrap', tabindex: '0', role: 'region', 'aria-label': `Address of ${source}` }, url),
    source === 'default'
      ? [h('h3', {}, 'For example ', copyButton(curl)), h('pre', { class: 'code-block wrap', tabindex: '0', role: 'region', 'aria-label': 'Example with curl' }, curl),
        h('p', {}, h('a', { class: 'button', href: '#/test' }, icon('flask'), 'Send one from here'))]
      : h('p', { class: 'muted' }, 'Its provider signs what it sends: an example by hand would be refused.'));
  return {
    element,
    set(s, words) {
      if (last.dataset.at !== String(s.last_arrival_at)) {
        last.dataset.at = String(s.last_arrival_at);
        fill(last, s.last_arrival_at ? age(s.last_arrival_at) : 'nothing yet');
      }
      const text = words ?? (s.last_arrival_at ? '—' : 'nothing yet');
      if (rate.textContent !== text) rate.textContent = text;
    },
  };
}
