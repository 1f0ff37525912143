// What a page does when it is touched. All it shows is in the page already; without this script it stands in tables,
// figures, links and videos with controls. Texts are set as text, never as HTML: they may come from data.
'use strict';
(() => {
  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = (root) => JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const still = matchMedia('(prefers-reduced-motion: reduce)');

  // --- one tip for all: words of the glossary, points of a figure
  const tip = make('div', { id: 'tip', className: 'tip', hidden: true });
  tip.setAttribute('role', 'tooltip');
  document.body.append(tip);
  let told = null;
  const place = (at) => {
    const box = at.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 56 ? above : box.bottom + 8}px`;
  };
  const say = (at, text) => {
    told = at;
    tip.textContent = text;
    tip.hidden = false;
    at.setAttribute('aria-describedby', 'tip');
    place(at);
  };
  const hush = (at) => {
    tip.hidden = true;
    at.removeAttribute('aria-describedby');
  };
  const tells = (at, text) => {
    for (const event of ['mouseenter', 'focus']) at.addEventListener(event, () => say(at, text));
    for (const event of ['mouseleave', 'blur']) at.addEventListener(event, () => hush(at));
  };
  document.addEventListener('keydown', (event) => { if (event.key === 'Escape') tip.hidden = true; });
  addEventListener('scroll', () => { if (!tip.hidden) place(told); }, { passive: true, capture: true });
  for (const word of all('a.term')) {
    const meaning = document.getElementById(word.hash.slice(1));
    if (meaning) tells(word, meaning.nextElementSibling.textContent);
  }

  // --- intervals tell their numbers: one stop of the tab key for each figure, arrow keys inside
  for (const figure of all('figure[data-points]')) {
    const image = figure.querySelector('img');
    const frame = make('div', { className: 'pointed' });
    frame.style.maxWidth = image.style.width;
    image.replaceWith(frame);
    frame.append(image);
    const points = JSON.parse(figure.dataset.points).map(([x, y, text], i) => {
      const point = make('button', { type: 'button', className: 'point', tabIndex: i ? -1 : 0 });
      point.setAttribute('aria-label', text);
      point.style.left = `${100 * x}%`;
      point.style.top = `${100 * y}%`;
      tells(point, text);
      frame.append(point);
      return point;
    });
    frame.addEventListener('keydown', (event) => {
      const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = points[(points.indexOf(document.activeElement) + step + points.length) % points.length];
      next.focus();
    });
  }

  // --- tables: a heading sorts
  const amount = (text) => {
    const found = text.replace(/−/g, '-').replace(/,/g, '').match(/^[+]?(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)/);
    return found ? Number(found[1]) : null;
  };
  for (const table of all('.table table')) {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3) continue;
    const first = [...body.rows];
    for (const head of all('thead th', table)) {
      const at = head.cellIndex;
      if (!head.textContent) continue;
      const button = make('button', { type: 'button', className: 'sort', textContent: head.textContent });
      head.replaceChildren(button);
      button.addEventListener('click', () => {
        const way = { none: 'ascending', ascending: 'descending', descending: 'none' }[head.ariaSort || 'none'];
        for (const other of all('thead th', table)) other.removeAttribute('aria-sort');
        if (way !== 'none') head.setAttribute('aria-sort', way);
        const text = (row) => row.cells[at].textContent.trim();
        const sign = way === 'descending' ? -1 : 1;
        const compare = (a, b) => {
          const [x, y] = [amount(text(a)), amount(text(b))];
          if (x !== null && y !== null) return sign * (x - y);
          if (x !== null || y !== null) return x === null ? 1 : -1; // what has no number comes last either way
          return sign * text(a).localeCompare(text(b));
        };
        body.append(...(way === 'none' ? first : [...first].sort(compare)));
      });
    }
  }
  for (const box of all('.table, .drawing, pre')) {
    const cue = () => {
      const scrolls = box.scrollWidth > box.clientWidth + 1;
      box.classList.toggle('scrolls', scrolls);
      box.tabIndex = scrolls ? 0 : -1; // a stop of the tab key only where there is something to scroll
    };
    new ResizeObserver(() => requestAnimationFrame(cue)).observe(box);
  }

  // --- videos play while they are seen, unless the reader wants them still
  let playing = !still.matches;
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      target.seen = isIntersecting;
      if (isIntersecting && playing && !target.held) target.play().catch(() => {});
      else if (!target.paused) target.pause();
    }
  }, { threshold: 0.2 });
  const watch = (video) => {
    video.controls = !playing;
    video.tabIndex = 0;
    const show = () => { video.controls = true; };
    const hide = () => { video.controls = !playing || document.activeElement === video; };
    video.addEventListener('mouseenter', show);
    video.addEventListener('focus', show);
    video.addEventListener('mouseleave', hide);
    video.addEventListener('blur', () => { video.controls = !playing; });
    video.addEventListener('pause', () => { video.held = video.seen && playing; });
    video.addEventListener('play', () => { video.held = false; });
    seen.observe(video);
  };
  all('video').forEach(watch);
  if (document.querySelector('video, .picker')) {
    const button = make('button', { type: 'button', className: 'motion' });
    const name = () => { button.textContent = playing ? 'Pause videos' : 'Play videos'; };
    button.addEventListener('click', () => {
      playing = !playing;
      for (const video of all('video')) {
        video.controls = !playing;
        if (!playing) video.pause();
        else if (video.seen) video.play().catch(() => {});
      }
      name();
    });
    name();
    document.querySelector('nav.pages')?.append(button);
  }

  // --- pick a query: what each model found
  for (const picker of all('.picker')) {
    const { queries, models, videos, texts } = read(picker);
    const id = picker.querySelector('script').id;
    const input = make('input', { type: 'search', id: `${id}-input`, autocomplete: 'off' });
    input.placeholder = queries[0].text;
    input.setAttribute('role', 'combobox');
    input.setAttribute('aria-expanded', 'false');
    input.setAttribute('aria-controls', `${id}-list`);
    input.setAttribute('aria-autocomplete', 'list');
    const list = make('ul', { id: `${id}-list`, hidden: true });
    list.setAttribute('role', 'listbox');
    list.setAttribute('aria-label', 'Queries');
    const shown = make('div', { className: 'found' });
    shown.setAttribute('aria-live', 'polite');
    let at = -1;
    const player = (video, mark, text) => {
      const moving = make('video', { preload: 'auto', muted: true, loop: true, playsInline: true, src: `data:video/mp4;base64,${videos[video]}` });
      moving.setAttribute('aria-label', text);
      watch(moving);
      return make('div', { className: 'player' }, moving, make('p', {}, make('b', { textContent: mark }), ` ${text}`));
    };
    const choose = (query) => {
      input.value = query.text;
      close();
      const columns = models.map((model, i) => {
        const { rank, found } = query.by[i];
        const row = found.map(([video, score], place) => {
          const own = video === query.video;
          const made = player(video, `${place + 1}${own ? ' ✓' : ''} · ${score}`, texts[video]);
          if (own) made.classList.add('own');
          return made;
        });
        const said = `${model}: its own video at rank ${rank}`;
        return make('div', { className: 'model' }, make('p', { className: 'said', textContent: said }), make('div', { className: 'row' }, ...row));
      });
      shown.replaceChildren(...columns);
    };
    const close = () => {
      list.hidden = true;
      at = -1;
      input.setAttribute('aria-expanded', 'false');
      input.removeAttribute('aria-activedescendant');
    };
    const open = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = queries.filter(({ text }) => words.every((word) => text.toLowerCase().includes(word))).slice(0, 8);
      list.replaceChildren(...fits.map((query, i) => {
        const option = make('li', { id: `${id}-${i}`, textContent: query.text });
        option.setAttribute('role', 'option');
        option.setAttribute('aria-selected', 'false');
        option.query = query;
        option.addEventListener('mousedown', (event) => { event.preventDefault(); choose(query); });
        return option;
      }));
      list.hidden = !fits.length;
      at = -1;
      input.setAttribute('aria-expanded', String(!list.hidden));
    };
    input.addEventListener('input', open);
    input.addEventListener('focus', () => { input.select(); });
    input.addEventListener('blur', close);
    input.addEventListener('keydown', (event) => {
      const options = [...list.children];
      if (event.key === 'Escape') close();
      else if (event.key === 'Enter' && options.length && !list.hidden) choose(options[Math.max(at, 0)].query);
      else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
        event.preventDefault();
        if (list.hidden) open();
        const count = list.children.length;
        if (!count) return;
        at = (at + (event.key === 'ArrowDown' ? 1 : -1) + count) % count;
        [...list.children].forEach((option, i) => option.setAttribute('aria-selected', String(i === at)));
        input.setAttribute('aria-activedescendant', list.children[at].id);
      }
    });
    const label = make('label', { htmlFor: input.id, textContent: `Type words of one of ${queries.length} test sentences` });
    picker.querySelector('.static')?.remove();
    picker.append(make('div', { className: 'ask' }, label, input, list), shown);
    choose(queries[0]);
    input.value = '';
  }

  // --- where the proxies look: frame, layer, head, proxy
  for (const viewer of all('.attention')) {
    const { clips, grid, size } = read(viewer);
    const id = viewer.querySelector('script').id;
    const [layers, heads, proxies, frames] = size;
    const cells = grid[0] * grid[1];
    const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    for (const clip of clips) clip.bytes = decode(clip.maps);
    const state = { clip: 0, layer: layers - 1, head: 0, proxy: 0, frame: 0 };
    const row = make('div', { className: 'row frames' });
    const said = make('p', { className: 'said' });
    said.setAttribute('aria-live', 'polite');
    const part = (head, frame) => {
      const { bytes } = clips[state.clip];
      const start = ((((state.layer * heads + head) * proxies + state.proxy) * frames) + frame) * cells;
      return bytes.subarray(start, start + cells);
    };
    const average = (frame) => {
      const chosen = state.head ? [state.head - 1] : [...Array(heads).keys()];
      return Array.from({ length: cells }, (_, i) => chosen.reduce((sum, head) => sum + part(head, frame)[i], 0) / chosen.length);
    };
    const draw = () => {
      const clip = clips[state.clip];
      const maps = Array.from({ length: frames }, (_, frame) => average(frame));
      const most = Math.max(...maps.flat(), 1);
      const shares = maps.map((map) => map.reduce((a, b) => a + b, 0));
      const total = shares.reduce((a, b) => a + b, 0) || 1;
      row.replaceChildren(...maps.map((map, frame) => {
        const image = make('img', { src: `data:image/jpeg;base64,${clip.frames[frame]}`, alt: `frame ${frame + 1}` });
        const veil = make('div', { className: 'veil' });
        veil.style.gridTemplateColumns = `repeat(${grid[1]}, 1fr)`;
        veil.append(...map.map((value) => {
          const cell = make('i');
          cell.style.opacity = (0.85 * (1 - value / most)).toFixed(3);
          return cell;
        }));
        const held = make('div', { className: 'held' }, image, veil);
        const made = make('div', { className: 'player' }, held, make('p', {}, make('b', { textContent: `frame ${frame + 1}` }), ` ${Math.round(100 * shares[frame] / total)} %`));
        if (frame === state.frame) made.classList.add('own');
        return made;
      }));
      const where = maps[state.frame].indexOf(Math.max(...maps[state.frame]));
      const head = state.head ? `head ${state.head}` : 'all heads';
      said.textContent = `Layer ${state.layer + 1}, ${head}, proxy ${state.proxy + 1}: ${Math.round(100 * shares[state.frame] / total)} % of what it gives the frames goes to frame ${state.frame + 1}, most to row ${Math.floor(where / grid[1]) + 1}, column ${where % grid[1] + 1}.`;
    };
    const choice = (name, options) => {
      const select = make('select', { id: `${id}-${name}` }, ...options.map((text, value) => make('option', { value, textContent: text })));
      select.value = state[name];
      select.addEventListener('change', () => { state[name] = Number(select.value); draw(); });
      return make('label', {}, `${name} `, select);
    };
    const count = (n) => Array.from({ length: n }, (_, i) => String(i + 1));
    const controls = make('div', { className: 'choices' },
      choice('clip', clips.map(({ text }) => text)), choice('layer', count(layers)),
      choice('head', ['all', ...count(heads)]), choice('proxy', count(proxies)), choice('frame', count(frames)));
    viewer.querySelector('.static')?.remove();
    viewer.append(controls, row, said);
    draw();
  }

  // --- where one is: in the row of pages, which scrolls on a phone
  const here = document.querySelector('nav.pages [aria-current]');
  if (here) here.closest('ol').scrollLeft = here.offsetLeft - here.closest('ol').offsetLeft - 40;

  // --- the outline is folded where it stands above the text
  const outline = document.querySelector('nav.outline details');
  if (outline && innerWidth < 1150) outline.open = false;
})();
