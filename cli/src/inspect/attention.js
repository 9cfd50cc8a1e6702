// Shows one attention map of MAPS (a string a layer: heads, queries, keys up to the query; two hexadecimal digits a weight).
(() => {
  const layer = document.getElementById("layer"), head = document.getElementById("head");
  const canvas = document.getElementById("map"), reading = document.getElementById("reading");
  const words = [...document.querySelectorAll("#words button")];
  const triangle = SEQ * (SEQ + 1) / 2;
  const cell = Math.max(3, Math.min(28, Math.floor(720 / SEQ)));
  let weights = new Float32Array(SEQ * SEQ), chosen = SEQ - 1;

  const read = () => {
    const text = MAPS[layer.value];
    const heads = head.value === "-1" ? [...Array(HEADS).keys()] : [Number(head.value)];
    weights.fill(0);
    for (const h of heads) {
      let at = 2 * h * triangle;
      for (let q = 0; q < SEQ; q++)
        for (let k = 0; k <= q; k++, at += 2)
          weights[q * SEQ + k] += parseInt(text.substr(at, 2), 16) / 255 / heads.length;
    }
  };

  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const paint = () => {
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.height = SEQ * cell * scale;
    canvas.style.width = canvas.style.height = SEQ * cell + "px";
    const g = canvas.getContext("2d");
    g.scale(scale, scale);
    g.fillStyle = colour("--c0");
    for (let q = 0; q < SEQ; q++)
      for (let k = 0; k <= q; k++) {
        g.globalAlpha = 0.04 + 0.96 * weights[q * SEQ + k];
        g.fillRect(k * cell, q * cell, cell - 0.5, cell - 0.5);
      }
    g.globalAlpha = 1;
    g.strokeStyle = colour("--c1");
    g.strokeRect(0.5, chosen * cell + 0.5, (chosen + 1) * cell - 1, cell - 1);
  };

  const show = (query, key) => {
    chosen = query;
    paint();
    words.forEach((word, k) => {
      const w = k <= query ? weights[query * SEQ + k] : 0;
      word.style.background = `color-mix(in srgb, var(--c0) ${Math.round(80 * w)}%, transparent)`;
      word.classList.toggle("chosen", k === query);
      word.title = k <= query ? w.toFixed(3) : "not seen";
    });
    let most = 0;
    for (let k = 1; k <= query; k++) if (weights[query * SEQ + k] > weights[query * SEQ + most]) most = k;
    const at = key === undefined ? most : key;
    const name = i => `${i} “${words[i].textContent}”`;
    reading.textContent = `${name(query)} looks at ${name(at)}: ${weights[query * SEQ + at].toFixed(3)}` +
      (key === undefined ? ", most of all" : "");
  };

  const update = () => { read(); show(chosen); };
  layer.addEventListener("change", update);
  head.addEventListener("change", update);
  words.forEach((word, i) => {
    word.addEventListener("focus", () => show(i));
    word.addEventListener("mouseenter", () => show(i));
  });
  canvas.addEventListener("mousemove", e => {
    const k = Math.floor(e.offsetX / cell), q = Math.floor(e.offsetY / cell);
    if (q >= 0 && q < SEQ && k >= 0 && k <= q) show(q, k);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  update();
})();
