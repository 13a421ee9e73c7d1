
'use strict';
(() => {
  const byId = id => document.getElementById(id);
  const SVG = 'http://www.w3.org/2000/svg';
  const number = new Intl.NumberFormat('en');
  const count = (n, one, many = one + 's') => number.format(n) + ' ' + (n === 1 ? one : many);

  // Names come from the network: they become text, never markup.
  const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const show = (node, shown) => { if (node.hidden === shown) node.hidden = !shown; };
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const draw = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const icon = name => draw('svg', { class: 'icon', 'aria-hidden': 'true' }, draw('use', { href: '#i-' + name }));

  // "0.7 s", "12 s", "3 min 20 s", "3 h 12 min", "2 d 3 h", none of them broken over lines.
  const span = ms => words(ms).replaceAll(' ', '\u00a0');
  const words = ms => {
    const s = Math.round(ms / 1000);
    if (ms < 950) return (ms / 1000).toFixed(1) + ' s';
    if (s < 60) return s + ' s';
    const parts = (big, bigName, small, smallName) => big + ' ' + bigName + (small ? ' ' + small + ' ' + smallName : '');
    if (s < 600) return parts(Math.floor(s / 60), 'min', s % 60, 's');
    const min = Math.round(s / 60);
    if (min < 60) return min + ' min';
    if (min < 1440) return parts(Math.floor(min / 60), 'h', min % 60, 'min');
    const h = Math.round(min / 60);
    return parts(Math.floor(h / 24), 'd', h % 24, 'h');
  };
  const when = (at, now) => Math.abs(at - now) < 1000 ? 'now' : at > now ? 'in ' + span(at - now) : span(now - at) + ' ago';

  // Rows that stay in place while what stands in them changes.
  const fill = (body, items, key, build, update) => {
    const old = new Map([...body.children].map(row => [row.dataset.key, row]));
    items.forEach((item, at) => {
      const id = key(item);
      const row = old.get(id) || build(item);
      old.delete(id);
      row.dataset.key = id;
      update(row, item);
      if (body.children[at] !== row) body.insertBefore(row, body.children[at] || null);
    });
    for (const row of old.values()) row.remove();
  };
  const row = labels => make('tr', { role: 'row' }, ...labels.map((label, at) => at === 0
    ? make('th', { role: 'rowheader', scope: 'row' })
    : make('td', { role: 'cell', ...(label && { 'data-label': label }) })));

  const nodeRow = () => {
    const made = row(['', '', 'Last report', 'Clock', 'Sessions', 'Proxies', 'Pod', 'Version']);
    made.children[0].append(make('span'));
    made.children[1].append(make('span', { class: 'with-icon' }, icon('good'), make('span')));
    made.children[4].className = 'num';
    return made;
  };
  const badges = { leader: 'leader', asked: 'this node' };
  const updateNode = (made, node, farm) => {
    const cells = made.children;
    setText(cells[0].firstChild, node.name);
    for (const [kind, word] of Object.entries(badges)) {
      const badge = cells[0].querySelector('[data-badge=' + kind + ']');
      const wanted = farm[kind] === node.name;
      if (badge && !wanted) badge.remove();
      if (!badge && wanted) {
        const star = kind === 'leader' ? [icon('leader')] : [];
        cells[0].append(make('span', { class: star.length ? 'badge' : 'badge plain', 'data-badge': kind }, ...star, word));
      }
    }
    made.classList.toggle('late', !node.in_step);
    const use = cells[1].querySelector('use');
    const wanted = node.in_step ? '#i-good' : '#i-bad';
    if (use.getAttribute('href') !== wanted) use.setAttribute('href', wanted);
    setText(cells[1].querySelector('span span'), node.in_step ? 'in step' : 'not in step');
    setText(cells[2], node.last_report_ms < 100 ? 'now' : span(node.last_report_ms) + ' ago');
    const off = Math.abs(node.clock_offset_ms);
    setText(cells[3], (off < 1000 ? off + ' ms' : span(off)) + (off === 0 ? '' : node.clock_offset_ms > 0 ? ' ahead' : ' behind'));
    setText(cells[4], number.format(node.sessions));
    setText(cells[5], proxies(node.proxies));
    setText(cells[6], node.pod);
    setText(cells[7], node.version);
  };
  const proxies = list => {
    const kinds = new Map();
    for (const { kind, version } of list) {
      const name = kind + ' ' + version;
      kinds.set(name, (kinds.get(name) || 0) + 1);
    }
    return [...kinds].map(([name, n]) => n === 1 ? name : n + ' × ' + name).join(', ') || 'none';
  };

  const STATES = { next: 'seals next', active: 'seals now', previous: 'opens only', expired: 'over' };
  // The ring says until when a key may seal; its successor ends that earlier. Newest first, as the ring is.
  const spans = keys => keys.map((key, at) => {
    const successor = at > 0 ? keys[at - 1].seal_from : Infinity;
    return { ...key, superseded: successor < key.seal_until, sealsTo: Math.max(key.seal_from, Math.min(key.seal_until, successor)) };
  });
  const MOST_KEYS = 8;

  const updateRing = farm => {
    const now = farm.now;
    const living = spans(farm.ring.keys).filter(key => key.state !== 'expired');
    const keys = living.slice(0, MOST_KEYS);
    const active = living.find(key => key.state === 'active');
    const next = living.filter(key => key.state === 'next').pop();
    const older = living.filter(key => key.state === 'previous');
    const words = [];
    words.push(active ? 'Key ' + active.name_prefix + ' has sealed new tickets for ' + span(Math.max(0, now - active.seal_from)) + '.'
      : 'No key of the farm seals tickets.');
    if (next) words.push('Key ' + next.name_prefix + ' takes over ' + when(next.seal_from, now) + '.');
    else if (active) words.push('No next key is known; this one seals for ' + span(Math.max(0, active.seal_until - now)) + ' more at most.');
    if (older.length) {
      const last = Math.max(...older.map(key => key.open_until));
      words.push(count(older.length, 'older key') + ' still ' + (older.length === 1 ? 'opens' : 'open') + ' tickets' + (older.length === 1 ? '' : ', the last of them') + ' for another ' + span(Math.max(0, last - now)) + '.');
    }
    if (living.length > keys.length) words.push('The newest ' + keys.length + ' are drawn.');
    setText(byId('ring-words'), words.join(' '));
    setText(byId('fact-key'), active ? active.name_prefix : 'none');
    setText(byId('fact-key-more'), active ? 'for ' + span(Math.max(0, now - active.seal_from)) + (next ? '; the next one ' + when(next.seal_from, now) : '; no next one') : '');
    byId('ring').replaceChildren(...(keys.length ? [timeline(keys, now)] : []));
    fill(byId('key-rows'), living, key => key.name_prefix + key.generation, () => row(['', '', 'Seals', 'Opens']), (made, key) => {
      setText(made.children[0], key.name_prefix);
      setText(made.children[1], STATES[key.state] || key.state);
      const left = span(Math.abs(key.sealsTo - now)), most = key.superseded ? '' : ' at most';
      setText(made.children[2], key.sealsTo <= now ? 'ended ' + left + ' ago'
        : key.seal_from > now ? 'begins ' + when(key.seal_from, now)
        : 'for ' + span(now - key.seal_from) + ', and another ' + left + most);
      setText(made.children[3], key.open_until <= now ? 'no more' : 'for another ' + span(key.open_until - now));
    });
  };

  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000];
  const ROW = 44;
  const timeline = (keys, now) => {
    const begun = keys.filter(key => key.seal_from <= now);
    const from = Math.min(now, ...keys.map(key => key.seal_from));
    const known = Math.max(now, ...begun.map(key => key.open_until), ...keys.map(key => key.seal_from));
    const to = known + (known - from) * 0.04 + 1;
    const x = at => (100 * (Math.min(to, Math.max(from, at)) - from) / (to - from));
    const height = keys.length * ROW + 30;
    const svg = draw('svg', { width: '100%', height, 'aria-hidden': 'true', focusable: 'false' });
    svg.append(draw('defs', {}, draw('pattern', { id: 'hatch', width: 7, height: 7, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' },
      draw('line', { x1: 0, y1: 0, x2: 0, y2: 7, class: 'hatch-line' }))));
    const step = 1000 * (STEPS.find(s => (to - from) / (1000 * s) <= 5.5) || 7776000);
    const width = x(now + step) - x(now);
    for (let k = Math.ceil((from - now) / step); now + k * step <= to; k += 1) {
      const at = x(now + k * step);
      svg.append(draw('line', { x1: at + '%', x2: at + '%', y1: 0, y2: keys.length * ROW + 6, class: 'gridline' }));
      const anchor = at < width / 3 ? 'start' : at > 100 - width / 3 ? 'end' : 'middle';
      const label = k === 0 ? 'now' : (k < 0 ? '−' : '+') + span(Math.abs(k * step));
      svg.append(draw('text', { x: at + '%', y: keys.length * ROW + 24, 'text-anchor': anchor, class: k === 0 ? 'name' : 'tick' }, label));
    }
    const bar = (kinds, y, a, b) => {
      for (const kind of kinds) svg.append(draw('rect', { x: x(a) + '%', y, width: Math.max(0.4, x(b) - x(a)) + '%', height: 16, rx: 3, class: kind }));
    };
    const labels = [];
    keys.forEach((key, at) => {
      const y = at * ROW;
      const begins = x(key.seal_from);
      if (key.seal_from > now) {
        bar(['waits'], y + 20, key.seal_from, to);
      } else {
        if (key.open_until > key.sealsTo) bar(['opens', 'hatch'], y + 20, key.sealsTo, key.open_until);
        bar(['seals'], y + 20, key.seal_from, key.sealsTo);
      }
      const late = begins > 50;
      labels.push(draw('text', { x: (late ? 100 : begins) + '%', y: y + 14, 'text-anchor': late ? 'end' : 'start' },
        draw('tspan', { class: 'name' }, key.name_prefix), ' ' + (STATES[key.state] || key.state)));
    });
    // The instant crosses the bars, and the words stand over it.
    svg.append(draw('line', { x1: x(now) + '%', x2: x(now) + '%', y1: 0, y2: keys.length * ROW + 6, class: 'nowline' }), ...labels);
    return svg;
  };

  const TILES = [
    ['published', 'Sent to the pod', 'new sessions of the proxies here'],
    ['received', 'Received from the pod', 'sessions of other hosts'],
    ['inserted', 'Taken into the cache', 'of those received'],
    ['brought_back', 'Brought back by clients', 'to a proxy here, made on another host'],
    ['dropped', 'Sessions dropped', 'neither sent nor kept'],
    ['refused', 'Messages refused', 'from the broker, not acted on'],
    ['missed', 'Messages missed', 'lost on the way to this node'],
  ];
  // Drops of every healthy farm: data has them, the page does not count them.
  const ORDINARY = ['echo', 'duplicate', 'tombstone', 'removal_unknown'];
  const ALARMING = ['refused', 'missed'];
  const REASONS = {
    unknown_secret: 'sealed with a farm secret that this node does not have', unknown_epoch: 'sealed in an epoch that this node does not know yet',
    bad_tag: 'altered on the way, or forged', not_in_epoch: 'should have been sealed in an epoch', replay: 'seen before',
    clock: 'stamped too far from this node’s clock', malformed: 'not a message', too_large: 'larger than may be', too_many: 'with more in it than any node sends', table_full: 'from more senders than are remembered',
    unknown_kind: 'of a kind that this release does not know', no_agreement: 'from a host that shares no key agreement with this one', bad_request: 'a request that makes no sense', library: 'the cryptographic library failed',
    bad_id: 'no session ID', broken_der: 'not a session', unknown_version: 'of a TLS version without session IDs', unknown_format: 'of a format that this release does not know',
    wrong_id: 'not the session of that ID', expired: 'over already', from_the_future: 'created in the future', lives_too_long: 'to be resumed for more than a week', flushed: 'flushed by a revocation',
    over_limit: 'more than the cache holds', bad_tombstone: 'a removal that makes no sense',
    removal_kept: 'a removal that sessions.removals keeps from spreading', removal_unknown: 'a removal of what this node does not hold', outbox_full: 'more than waits for the broker', broker_blocked: 'the broker takes nothing at the moment',
    broker_away: 'no connection to the broker', no_epoch: 'no epoch key yet', not_sent: 'the broker did not take it', stopping: 'the node was stopping',
    plugin_queue_full: 'the proxy’s plugin had no room', too_large_for_proxy: 'larger than the proxy takes', proxy_slow: 'the proxy took too long',
  };
  const byReason = (step, name) => Object.entries(step[name] || {}).filter(([reason]) => !ORDINARY.includes(reason));
  const value = (step, name) => typeof step[name] === 'number' ? step[name] : byReason(step, name).reduce((all, [, n]) => all + n, 0);

  const updateHistory = farm => {
    const { window_ms: window, steps } = farm.history;
    const reach = steps.length ? Math.min(window, steps[0].ended_ms_ago + steps[0].ms) : 0;
    setText(byId('asked'), farm.asked);
    setText(byId('activity-span'), reach ? 'What this node alone counted in the last ' + span(reach) + '.' : 'This node has just begun to count.');
    fill(byId('tiles'), TILES, tile => tile[0], ([name, title, about]) => {
      const chart = draw('svg', { class: 'chart', role: 'img', viewBox: '0 0 600 44', preserveAspectRatio: 'none' },
        draw('path', { class: 'bars' }), draw('line', { class: 'base', x1: 0, x2: 600, y1: 43.5, y2: 43.5 }));
      return make('div', { class: 'tile', 'data-name': name }, make('h3', {}, title), make('p', { class: 'muted about' }, about),
        make('p', { class: 'count' }, make('span'), make('span', { class: 'peak' })), chart, make('div', { class: 'ends', 'aria-hidden': 'true' }, make('span'), make('span', {}, 'now')));
    }, (tile, [name, title]) => {
      const values = steps.map(step => value(step, name));
      const total = values.reduce((a, b) => a + b, 0);
      const most = Math.max(0, ...values);
      let path = '';
      steps.forEach((step, at) => {
        if (!values[at]) return;
        const right = 600 * (1 - step.ended_ms_ago / window);
        const left = Math.max(0, right - 600 * step.ms / window);
        const top = 43 - Math.max(2, 42 * values[at] / most);
        path += 'M' + left.toFixed(1) + ' 43V' + top.toFixed(1) + 'H' + Math.max(left + 1, right - 0.6).toFixed(1) + 'V43z';
      });
      const bars = tile.querySelector('.bars');
      if (bars.getAttribute('d') !== path) bars.setAttribute('d', path);
      const alarm = ALARMING.includes(name) && total > 0;
      tile.classList.toggle('alarm', alarm);
      const shown = tile.querySelector('.count');
      setText(shown.querySelector('span'), number.format(total));
      if (alarm !== !!shown.querySelector('svg')) alarm ? shown.prepend(icon('bad')) : shown.querySelector('svg').remove();
      setText(shown.querySelector('.peak'), most ? 'peak ' + number.format(most) + ' in ' + span(steps[values.indexOf(most)].ms) : '');
      tile.querySelector('.chart').setAttribute('aria-label', title + ' over the last ' + span(window));
      setText(tile.querySelector('.ends span'), span(window) + ' ago');
    });
    const reasons = [];
    for (const [name, what] of [['refused', 'message refused'], ['dropped', 'session dropped']]) {
      const totals = new Map();
      for (const step of steps) for (const [reason, n] of byReason(step, name)) totals.set(reason, (totals.get(reason) || 0) + n);
      for (const [reason, n] of [...totals].sort((a, b) => b[1] - a[1])) reasons.push({ id: name + ':' + reason, reason, what, n });
    }
    show(byId('reasons'), reasons.length > 0);
    fill(byId('reason-rows'), reasons, reason => reason.id, () => {
      const made = row(['', '', 'Count']);
      made.children[1].className = 'wide';
      made.children[2].className = 'num';
      made.children[0].append(make('code'));
      return made;
    }, (made, { reason, what, n }) => {
      setText(made.children[0].firstChild, reason);
      setText(made.children[1], what + (Object.hasOwn(REASONS, reason) ? ': ' + REASONS[reason] : ''));
      setText(made.children[2], number.format(n));
    });
  };

  const fact = (id, text, kind) => {
    const node = byId(id);
    if (node.dataset.kind !== kind || node.lastChild?.textContent !== text) {
      node.dataset.kind = kind;
      const warns = kind === 'bad';
      const drawn = icon(kind);
      if (warns) drawn.classList.add('warn');
      node.replaceChildren(drawn, make('span', {}, text));
    }
  };

  const update = farm => {
    setText(byId('farm'), farm.farm);
    fact('fact-leader', farm.leader ?? 'none answers', farm.leader ? 'leader' : 'bad');
    setText(byId('fact-leader-more'), farm.leader ? 'makes the farm’s ticket keys' : 'no new key is made for the farm');
    const { total, in_step: inStep, listed } = farm.counts;
    fact('fact-step', farm.leader ? number.format(inStep) + ' of ' + number.format(total) : 'unknown', farm.leader && inStep === total ? 'good' : 'bad');
    setText(byId('fact-step-more'), !farm.leader ? 'only a leader knows the others' : inStep === total ? 'all hold the same keys' : count(total - inStep, 'node') + ' not');
    const alone = farm.broker.uri === 'in-process';
    fact('fact-broker', alone ? 'none' : farm.broker.connected ? 'connected' : 'not connected', alone || farm.broker.connected ? 'good' : 'bad');
    setText(byId('fact-broker-more'), alone ? 'this node runs alone' : farm.broker.uri);
    show(byId('warnings'), farm.warnings.length > 0);
    fill(byId('warning-list'), farm.warnings.map((text, at) => ({ text, at })), warning => String(warning.at), () => make('li'), (item, { text }) => setText(item, text));
    show(byId('nodes-more'), listed < total);
    setText(byId('nodes-more'), number.format(listed) + ' of ' + number.format(total) + ' nodes are listed, those that are out of step first.');
    fill(byId('node-rows'), farm.nodes, node => node.name + ' ' + node.boot_id, nodeRow, (made, node) => updateNode(made, node, farm));
    updateRing(farm);
    show(byId('secret'), !!farm.secret_step);
    setText(byId('secret'), farm.secret_step || '');
    updateHistory(farm);
    show(byId('main'), true);
  };

  // Times are spans by the browser's monotonic clock, and instants by the node's: nothing depends on what the browser's clock says.
  let last = null;
  let heardAt = performance.now();
  // A page that nobody sees does not ask. Its node is not silent for that.
  let shownAt = performance.now();
  let failed = false;
  const RETRY_MS = 2000, GIVE_UP_MS = 12000, STALE_MS = 6000;

  const state = (level, text, symbol) => {
    byId('state').dataset.level = level;
    byId('state-icon').setAttribute('href', '#i-' + symbol);
    setText(byId('verdict'), text);
    const mark = { good: '✓', look: '!', bad: '▲' }[level] || '?';
    const title = mark + ' ' + (last ? last.farm : 'resumed') + ': ' + text;
    if (document.title !== title) document.title = title;
  };
  const tick = () => {
    if (document.hidden) return;
    const silent = performance.now() - heardAt;
    const waited = performance.now() - Math.max(heardAt, shownAt);
    const isStale = waited > STALE_MS && (failed || waited > GIVE_UP_MS + (last ? last.refresh_ms : 0));
    show(byId('stale'), isStale);
    if (isStale) {
      state('stale', last ? last.asked + ' does not answer.' : 'This node does not answer.', 'stale');
      setText(byId('stale'), 'No answer from this node for ' + span(silent) + '.' + (last ? ' What stands below is what it said last.' : ''));
      setText(byId('freshness'), '');
    } else if (last) {
      state(last.verdict.level, last.verdict.text, last.verdict.level);
      setText(byId('freshness'), 'Seen from ' + last.asked + ' in pod ' + last.pod + ', ' + (silent < 1000 ? 'just now' : span(silent) + ' ago') + '.');
    }
  };
  let timer = 0;
  let asking = false;
  const poll = async () => {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    let farm = null;
    try {
      const answer = await fetch('/farm.json', { cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(GIVE_UP_MS) });
      if (answer.ok) farm = await answer.json();
    } catch {
      // No answer: tick() tells whoever looks.
    }
    asking = false;
    failed = farm === null;
    timer = setTimeout(poll, farm ? Math.max(1000, farm.refresh_ms) : RETRY_MS);
    if (farm) {
      [last, heardAt] = [farm, performance.now()];
      update(farm);
    }
    tick();
  };
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) return;
    shownAt = performance.now();
    poll();
  });
  setInterval(tick, 1000);
  poll();
})();
