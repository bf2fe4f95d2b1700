(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const ICONS = {
    play: "M3 1.5v13l11-6.5z",
    pause: "M3 2h3.5v12H3zM9.5 2H13v12H9.5z",
    back: "M11.5 2v12L3.5 8z",
    forward: "M4.5 2v12l8-6z",
  };

  const make = (parent, tag, properties = {}, children = []) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    parent?.append(node);
    return node;
  };
  const draw = (parent, tag, attributes) => {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent.append(node);
    return node;
  };
  const setIcon = (button, name, label) => {
    button.replaceChildren();
    draw(draw(button, "svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }), "path", { d: ICONS[name] });
    button.title = label;
    button.setAttribute("aria-label", label);
  };

  // Frames from their differences: [position, value, ...] per frame, -1 where nothing is committed.
  const unpack = ({ size, deltas }) => {
    let frame = new Int32Array(size).fill(-1);
    return deltas.map((changes) => {
      frame = frame.slice();
      for (let i = 0; i < changes.length; i += 2) frame[changes[i]] = changes[i + 1];
      return frame;
    });
  };
  // 0 unchanged, 1 freshly committed, 2 masked again
  const change = (now, before) => (now === before ? 0 : now >= 0 ? 1 : 2);

  // Token views touch only the cells whose look differs from the one on screen.
  const cells = (view, host, paint) => {
    const spans = Array.from({ length: view.size }, () => make(host, "span"));
    const shown = new Array(view.size).fill(null);
    return (now, before) => {
      for (let i = 0; i < view.size; i++) {
        const kind = change(now[i], before[i]);
        const look = now[i] * 3 + kind;
        if (look === shown[i]) continue;
        shown[i] = look;
        spans[i].className = (now[i] < 0 ? "masked" : "set") + ["", " fresh", " gone"][kind];
        paint(spans[i], now[i], i);
      }
    };
  };

  const textView = (view, box, frames) => {
    const last = frames.at(-1);
    return cells(view, make(box, "div", { className: "text" }), (span, value, i) => {
      const text = view.symbols[value < 0 ? last[i] : value] ?? "\u2007";
      span.textContent = value < 0 ? "" : text;
      // A visible stretch for a line break or an empty token, so that it can be seen to be masked.
      span.dataset.ghost = /^[^\n]/.test(text) ? text : "\u2007" + text;
    });
  };

  const gridView = (view, box) => {
    const host = make(box, "div", { className: view.columns ? "grid rows" : "grid" });
    const width = Math.max(2, ...view.symbols.map((symbol) => symbol.length));
    host.style.setProperty("grid-template-columns", `repeat(${view.columns}, calc(${width}ch + 10px))`);
    return cells(view, host, (span, value) => {
      span.textContent = value < 0 ? "" : view.symbols[value];
      span.style.minWidth = `calc(${width}ch + 10px)`;
      span.style.setProperty("--hue", value < 0 ? 0 : view.hues[value]);
    });
  };

  const imageView = (view, box, frames, root) => {
    box.classList.add("fixed");
    const [height, width] = view.pixels;
    const scale = Math.max(1, Math.floor(300 / Math.max(height, width)));
    const cell = (scale * width) / view.width;
    const canvas = make(box, "canvas", { className: "masked", width: width * scale, height: height * scale });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", view.name);
    const context = canvas.getContext("2d");
    const sprite = new Image();
    let ready = false;
    let latest = null;
    const render = (now, before, k) => {
      latest = [now, before, k];
      if (!ready) return;
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.imageSmoothingEnabled = false;
      const left = (k % view.across) * width;
      const top = Math.floor(k / view.across) * height;
      context.drawImage(sprite, left, top, width, height, 0, 0, canvas.width, canvas.height);
      const style = getComputedStyle(root);
      const colors = [null, style.getPropertyValue("--spark"), style.getPropertyValue("--gone")];
      context.lineWidth = Math.max(1, Math.min(2, cell / 6));
      for (let i = 0; i < view.size; i++) {
        const kind = change(now[i], before[i]);
        if (!kind) continue;
        const x = (i % view.width) * cell;
        const y = Math.floor(i / view.width) * cell;
        const inset = context.lineWidth / 2;
        context.strokeStyle = context.fillStyle = colors[kind];
        // An outline would hide a small cell, so there it is a wash of colour.
        context.globalAlpha = cell < 5 ? 0.4 : 1;
        if (cell < 5) context.fillRect(x, y, cell, cell);
        else context.strokeRect(x + inset, y + inset, cell - 2 * inset, cell - 2 * inset);
      }
      context.globalAlpha = 1;
    };
    sprite.onload = () => {
      ready = true;
      if (latest) render(...latest);
    };
    sprite.src = view.sprite;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => latest && render(...latest));
    return render;
  };

  const timeline = (host, data, slider) => {
    const svg = draw(host, "svg", { viewBox: "0 0 1000 30", preserveAspectRatio: "none", "aria-hidden": "true" });
    const points = data.committed.map((count, k) => {
      const x = data.steps > 1 ? (1000 * k) / (data.steps - 1) : 1000;
      return `${x.toFixed(1)},${(29 - (28 * count) / data.length).toFixed(1)}`;
    });
    draw(svg, "polygon", { class: "area", points: `0,30 ${points.join(" ")} 1000,30` });
    draw(svg, "polyline", { class: "line", points: points.join(" ") });
    host.append(slider);
  };

  const start = (root) => {
    root.dataset.ready = "";
    const data = JSON.parse(root.querySelector("script").textContent);
    const views = make(root, "div", { className: "views" });
    const renderers = data.views.map((view) => {
      const box = make(views, "div", { className: "view" });
      make(box, "p", { className: "name", textContent: view.name });
      const frames = unpack(view);
      const render = { text: textView, grid: gridView, image: imageView }[view.kind](view, box, frames, root);
      return (k) => render(frames[k], frames[Math.max(0, k - 1)], k);
    });

    const last = data.steps - 1;
    const slider = make(null, "input", { type: "range", min: 0, max: last, step: 1 });
    slider.setAttribute("aria-label", "Step");
    timeline(make(root, "div", { className: "timeline" }), data, slider);

    const controls = make(root, "div", { className: "controls" });
    const button = (name, label, action) => {
      const node = make(controls, "button", { type: "button", className: name, onclick: action });
      setIcon(node, name, label);
      return node;
    };
    button("back", "Previous step", () => seek(current - 1));
    const toggle = button("play", "Play", () => (timer === null ? play() : pause()));
    button("forward", "Next step", () => seek(current + 1));
    const speeds = [0.25, 0.5, 1, 2, 4, 8];
    const options = speeds.map((value) => make(null, "option", { value, textContent: `${value}\u00d7`, selected: value === 1 }));
    const speed = make(controls, "select", { title: "Speed" }, options);
    speed.setAttribute("aria-label", "Speed");
    const counter = make(controls, "output");
    const legend = make(controls, "div", { className: "legend" });
    for (const [look, label] of [["masked", "masked"], ["fresh", "new"], ["masked gone", "masked again"]]) {
      if (look.includes("gone") && !data.remasks) continue;
      make(legend, "span", {}, [make(null, "i", { className: look }), label]);
    }

    let current = last;
    let timer = null;
    const show = (k) => {
      current = Math.min(last, Math.max(0, k));
      for (const render of renderers) render(current);
      const calls = data.calls ? `, ${data.calls[current]} network calls` : "";
      const text = `step ${current + 1} of ${data.steps}, committed ${data.committed[current]} of ${data.length}${calls}`;
      slider.value = current;
      slider.setAttribute("aria-valuetext", text);
      counter.value = text;
    };
    const pause = () => {
      clearTimeout(timer);
      timer = null;
      counter.setAttribute("aria-live", "polite");
      setIcon(toggle, "play", "Play");
    };
    const seek = (k) => {
      pause();
      show(k);
    };
    // A whole run takes about six seconds at normal speed, within what the eye can follow.
    const pace = Math.min(300, Math.max(30, 6000 / data.steps));
    const tick = () => {
      if (!root.isConnected || current === last) return pause();
      show(current + 1);
      timer = setTimeout(tick, pace / speed.value);
    };
    const play = () => {
      if (last === 0) return;
      if (current === last) show(0);
      counter.setAttribute("aria-live", "off");
      setIcon(toggle, "pause", "Pause");
      timer = setTimeout(tick, pace / speed.value);
    };

    slider.addEventListener("input", () => seek(Number(slider.value)));
    root.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("select")) return;
      const jumps = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: last };
      if (event.key in jumps) seek(jumps[event.key]);
      else if (event.key === " " && !event.target.matches("button")) toggle.click();
      else return;
      event.preventDefault();
    });
    pause();
    show(last);
  };

  document.querySelectorAll(".dd-player:not([data-ready])").forEach(start);
})();
