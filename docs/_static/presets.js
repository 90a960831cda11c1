// The presets without a server: neurons, loss and shares of neurons of precomputed runs, at a chosen time and a
// chosen value of one parameter. Each element .preset holds its data as JSON, and a picture that this replaces.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
  // of a chart, in its own units
  const WIDE = 400, HIGH = 190, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 26;
  // of a frame, in milliseconds; those who prefer less motion see a few still pictures instead
  const FRAME = 60, STILL = 1000, STILLS = 5;
  const short = (x) => String(+x.toPrecision(3));

  function svg(name, attributes = {}, text = "") {
    const found = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    found.textContent = text;
    return found;
  }

  function html(name, attributes = {}, ...children) {
    const found = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    found.append(...children);
    return found;
  }

  // Neurons move in the plane; coordinates are thousandths of half its height from its centre, upwards.
  class Plane {
    constructor(data) {
      this.own = data.own;
      this.picture = svg("svg", {
        viewBox: "-1600 -1000 3200 2000", role: "img", class: "plane",
        "aria-label": "Neurons in the plane, in the colour of their class",
      });
      const all = svg("g", { transform: "scale(1,-1)" }), rest = svg("g", { transform: `translate(${data.origin})` });
      for (const [k, [start, end]] of data.cones.entries()) {
        const arc = [];
        for (let i = 0; i <= 40; i++) {
          const turn = start + ((end - start) * i) / 40;
          arc.push(`${Math.round(5000 * Math.cos(turn))} ${Math.round(5000 * Math.sin(turn))}`);
        }
        rest.append(svg("path", { class: `cone class-${k}`, d: `M0 0L${arc.join("L")}Z` }));
      }
      for (const [k, points] of data.samples.entries()) {
        let rays = "";
        for (let i = 0; i < points.length; i += 2) rays += `M0 0L${points[i]} ${points[i + 1]}`;
        rest.append(svg("path", { class: `sample class-${k}`, d: rays }));
      }
      this.trails = data.classes.map((_, k) => svg("path", { class: `trail class-${k}` }));
      this.zeroth = svg("path", { class: "zeroth" });
      this.neurons = this.own.map((k) => svg("circle", { r: 28, class: `neuron class-${k}` }));
      all.append(rest, ...this.trails, this.zeroth, ...this.neurons);
      this.picture.append(all);
    }

    trail(places, j, frame) {
      const points = [], width = 2 * this.own.length;
      for (let t = 0; t <= frame; t++) points.push(`${places[t * width + 2 * j]} ${places[t * width + 2 * j + 1]}`);
      return `M${points.join("L")}`;
    }

    show(run, frame) {
      const count = this.own.length;
      this.trails.forEach((path, k) => {
        const members = [...this.own.keys()].filter((j) => this.own[j] === k);
        path.setAttribute("d", members.map((j) => this.trail(run.neurons, j, frame)).join(""));
      });
      this.zeroth.setAttribute("d", this.own.map((_, j) => this.trail(run.zeroth, j, frame)).join(""));
      this.neurons.forEach((circle, j) => {
        const at = 2 * (frame * count + j);
        circle.setAttribute("cx", run.neurons[at]);
        circle.setAttribute("cy", run.neurons[at + 1]);
        circle.classList.toggle("misaligned", run.misaligned[frame * count + j] === "1");
      });
    }
  }

  // Round numbers from 0 to a top: two to five steps.
  function levels(top) {
    const decade = 10 ** Math.floor(Math.log10(top / 2));
    const step = decade * [1, 2, 5, 10].find((part) => top / (part * decade) <= 5);
    return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, i) => i * step);
  }

  // Lines and bands over time.
  class Chart {
    constructor(title, top, percent, parts) {
      this.top = top;
      this.picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title} over time` });
      const floor = HIGH - BOTTOM;
      for (const level of levels(top)) {
        const y = this.y(level), text = percent ? `${Math.round(100 * level)} %` : short(level);
        this.picture.append(svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y, y2: y, class: "grid" }));
        this.picture.append(svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, text));
      }
      this.change = svg("line", { y1: TOP, y2: floor, class: "change" });
      this.now = svg("line", { y1: TOP, y2: floor, class: "now" });
      this.end = svg("text", { x: WIDE - RIGHT, y: HIGH - 8, "text-anchor": "end" });
      this.parts = parts.map(([kind, style, read]) => [kind, read, svg("path", { class: `${kind} ${style}` })]);
      const middle = svg("text", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 8, "text-anchor": "middle" }, "time");
      const origin = svg("text", { x: LEFT, y: HIGH - 8 }, "0");
      this.picture.append(this.change, ...this.parts.map((part) => part[2]), this.now, origin, middle, this.end);
    }

    y(value) {
      return TOP + (HIGH - TOP - BOTTOM) * (1 - value / this.top);
    }

    x(time, last) {
      return LEFT + ((WIDE - LEFT - RIGHT) * time) / last;
    }

    load(run) {
      const last = run.times[run.times.length - 1];
      const points = (values) => values.map((v, i) => `${this.x(run.times[i], last).toFixed(1)} ${this.y(v).toFixed(1)}`);
      for (const [kind, read, path] of this.parts) {
        const found = read(run);
        const way = kind === "band" ? [...points(found.low), ...points(found.high).reverse()] : points(found);
        path.setAttribute("d", `M${way.join("L")}`);
      }
      this.end.textContent = short(last);
      const inside = run.probing > 0 && run.probing < last;
      this.change.style.display = inside ? "" : "none";
      for (const end of ["x1", "x2"]) this.change.setAttribute(end, this.x(run.probing, last));
    }

    show(run, frame) {
      const x = this.x(run.times[frame], run.times[run.times.length - 1]);
      for (const end of ["x1", "x2"]) this.now.setAttribute(end, x);
    }
  }

  function key(...entries) {
    return html("p", { class: "key" }, ...entries.map(([style, text]) => html("span", { class: style }, text)));
  }

  function slider(words, count, value) {
    const input = html("input", { type: "range", min: 0, max: count - 1, step: 1, value });
    const output = html("span", { class: "value" });
    const label = html("label", {}, html("span", {}, words), input, output);
    const say = (text) => {
      output.textContent = text;
      input.setAttribute("aria-valuetext", text);
    };
    return { input, label, say };
  }

  class View {
    constructor(place, data) {
      this.data = data;
      this.plane = new Plane(data);
      const mean = (name) => (run) => run[name].mean, zeroth = (name) => (run) => run[name].zeroth;
      const loss = new Chart("Loss", data.highest, false, [
        ["band", "loss", (run) => run.loss], ["line", "loss", mean("loss")], ["line", "loss dashed", zeroth("loss")],
      ]);
      const shares = new Chart("Shares of neurons", 1, true, ["misaligned", "distorted"].flatMap((name) => [
        ["line", name, mean(`${name}_share`)], ["line", `${name} dashed`, zeroth(`${name}_share`)],
      ]));
      this.charts = [loss, shares];
      const last = data.runs[0].times.length - 1;
      this.time = slider("time", last + 1, last);
      this.parameter = slider(data.parameter, data.runs.length, data.own_value);
      this.button = html("button", { type: "button" });
      this.readout = html("p", { class: "readout" });
      this.said = html("p", { class: "said", "aria-live": "polite" });
      this.timer = null;
      this.pause();
      const classes = data.classes.map((name, k) => [`dot class-${k}`, `class ${name}`]);
      place.replaceChildren(
        html("div", { class: "controls" }, this.parameter.label, this.time.label, this.button),
        this.readout, this.plane.picture,
        key(...classes, ["dot hollow", "head misaligned"], ["stroke zeroth", "without noise"]),
        html("div", { class: "charts" },
          html("div", {}, html("p", { class: "title" }, "Loss, sum over samples"), loss.picture,
            key(["stroke loss", "mean"], ["area loss", `middle 90 % of ${data.paths} paths`], ["stroke loss dashed", "without noise"])),
          html("div", {}, html("p", { class: "title" }, "Shares of neurons"), shares.picture,
            key(["stroke misaligned", "misaligned"], ["stroke distorted", "distorted"], ["stroke dashed", "without noise"]))),
        this.said,
      );
      this.parameter.input.addEventListener("input", () => this.load());
      this.time.input.addEventListener("input", () => { this.pause(); this.show(); });
      this.button.addEventListener("click", () => (this.timer === null ? this.play() : this.pause()));
      this.load();
    }

    get run() {
      return this.data.runs[+this.parameter.input.value];
    }

    get frame() {
      return +this.time.input.value;
    }

    load() {
      const run = this.run;
      const spent = run.epsilon === null ? "no privacy" : `epsilon ${short(run.epsilon)}`;
      this.parameter.say(`${run.text} (${spent})`);
      this.said.textContent = `With ${this.data.parameter} ${run.text}: ${run.said}`;
      for (const chart of this.charts) chart.load(run);
      this.show();
    }

    show() {
      const run = this.run, frame = this.frame, count = this.data.own.length;
      const time = short(run.times[frame]), phase = run.times[frame] < run.probing ? "linear probing" : "full fine-tuning";
      this.time.say(time);
      const of = (name) => `${name} ${short(count * run[`${name}_share`].mean[frame])} of ${count}`;
      const parts = [`time ${time}`, phase, `loss ${short(run.loss.mean[frame])}`, of("misaligned"), of("distorted")];
      this.readout.textContent = parts.join(" · ");
      this.plane.show(run, frame);
      for (const chart of this.charts) chart.show(run, frame);
    }

    play() {
      const last = +this.time.input.max, step = lessMotion.matches ? Math.ceil(last / STILLS) : 1;
      if (this.frame >= last) this.time.input.value = 0;
      this.show();
      this.button.textContent = "Pause";
      this.timer = setInterval(() => {
        this.time.input.value = Math.min(last, this.frame + step);
        this.show();
        if (this.frame >= last) this.pause();
      }, lessMotion.matches ? STILL : FRAME);
    }

    pause() {
      clearInterval(this.timer);
      this.timer = null;
      this.button.textContent = "Play";
    }
  }

  for (const place of document.querySelectorAll(".preset")) {
    new View(place, JSON.parse(place.querySelector("script").textContent));
  }
})();
