"use strict";
// The plots. Numbers and texts come ready from the page; colours follow the reader's theme.
(function () {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const { COLOURS, DASHES, theme, config, layout, above, range, keepDrawn } = looks;
  const element = (id) => document.getElementById(id);

  function frontOf(x, y) {
    const fronts = data.fronts;
    return (fronts[x] && fronts[x][y]) || (fronts[y] && fronts[y][x]) || null;
  }

  const isPositive = (axis) => axis.values.every((value) => value === null || value > 0);

  function spreads(axis) {
    const values = axis.values.filter((value) => value !== null);
    return isPositive(axis) && Math.max(...values) > 30 * Math.min(...values);
  }

  function labels(places, shown, front, size, colours) {
    const order = [...shown.keys()].sort(
      (a, b) => front.includes(shown[b]) - front.includes(shown[a]) || a - b,
    );
    const pencil = document.createElement("canvas").getContext("2d");
    pencil.font = `12px ${colours.font}`;
    const widths = shown.map((i) => pencil.measureText(data.names[i]).width + 4);
    const pixels = places.map((place) => place.pixel);
    const line = front.map((i) => pixels[shown.indexOf(i)]);
    return freePlaces(pixels, widths, size, order, line).flatMap((shift, k) =>
      shift === null ? [] : [{
        x: places[k].own[0], y: places[k].own[1], xshift: shift[0], yshift: -shift[1],
        text: data.recipes[shown[k]], showarrow: false, font: { size: 12, color: colours.text },
      }]);
  }

  function drawTradeOffs() {
    const plot = element("trade-offs-plot");
    if (!plot) return;
    const colours = theme();
    const names = [element("x-axis").value, element("y-axis").value];
    const axes = names.map((name) => data.columns[name]);
    const isLog = ["x-log", "y-log"].map((id) => element(id).checked && !element(id).disabled);
    const shown = [...data.recipes.keys()].filter((i) => axes.every((a) => a.values[i] !== null));
    const front = frontOf(...names);
    const onFront = (front || []).filter((i) => shown.includes(i));
    const margin = { l: 60, r: 20, t: 35, b: 55 }, height = 480;
    const size = [plot.clientWidth - margin.l - margin.r, height - margin.t - margin.b];
    const ranges = axes.map((a, k) => range(shown.map((i) => a.values[i]), isLog[k]));
    const places = shown.map((i) => {
      const own = axes.map((a, k) => (isLog[k] ? Math.log10(a.values[i]) : a.values[i]));
      const part = own.map((v, k) => (v - ranges[k][0]) / (ranges[k][1] - ranges[k][0]));
      return { own, pixel: [part[0] * size[0], (1 - part[1]) * size[1]] };
    });
    const pick = (indices, k) => indices.map((i) => axes[k].values[i]);
    const traces = [
      {
        x: pick(onFront, 0), y: pick(onFront, 1), mode: "lines", hoverinfo: "skip",
        line: { color: colours.accent, width: 1.5, dash: "dot" },
      },
      {
        x: pick(shown, 0), y: pick(shown, 1), mode: "markers", hoverinfo: "text",
        hovertext: shown.map((i) =>
          `<b>${data.recipes[i]}</b><br>${axes.map((a) => a.shown[i]).join("<br>")}`),
        marker: {
          size: shown.map((i) => (onFront.includes(i) ? 11 : 9)),
          color: shown.map((i) => (onFront.includes(i) ? colours.accent : colours.quiet)),
          line: { color: colours.paper, width: 1 },
        },
      },
    ];
    const axisOf = (k) => ({
      range: ranges[k], type: isLog[k] ? "log" : "linear",
    });
    Plotly.react(plot, traces, layout(plot, colours, {
      height, margin, yaxis: axisOf(1), hovermode: "closest",
      xaxis: { ...axisOf(0), title: { text: axes[0].title } },
      annotations: [
        above(axes[1].title, margin), ...labels(places, shown, onFront, size, colours),
      ],
    }), config(plot));
    element("front").textContent = front === null
      ? "No front: one of the two columns has no better direction."
      : `No other recipe is better in both columns than: ${
        onFront.map((i) => data.names[i]).join(", ")}.`;
  }

  function chooseAxis(letter) {
    const axis = data.columns[element(`${letter}-axis`).value], box = element(`${letter}-log`);
    box.disabled = !isPositive(axis);
    box.checked = spreads(axis);
  }

  const limitsOf = (scores) =>
    [["chance", scores.chance], ["ceiling", scores.ceiling]].filter((limit) => limit[1] !== null);

  // Far limits would press the intervals together: then they are out of view at first.
  function chooseLimits() {
    const own = [...data.scores.means, ...data.scores.low, ...data.scores.high]
      .filter((value) => value !== null);
    const all = [...own, ...limitsOf(data.scores).map((limit) => limit[1])];
    const width = (values) => Math.max(...values) - Math.min(...values);
    element("limits").checked = width(own) === 0 || width(all) < 3 * width(own);
  }

  function drawScores() {
    const plot = element("scores-plot");
    if (!plot) return;
    const colours = theme(), scores = data.scores;
    const rows = [...scores.names.keys()];
    const isInView = element("limits") && element("limits").checked;
    const limits = !isInView ? [] : limitsOf(scores);
    const seeds = rows.flatMap((i) => scores.seeds[i].map((value) => [value, i]));
    const hasInterval = (i) => scores.low[i] !== null && scores.high[i] !== null;
    const end = (ends, i, sign) => (hasInterval(i) ? sign * (ends[i] - scores.means[i]) : 0);
    const traces = [
      {
        x: seeds.map((seed) => seed[0]), y: seeds.map((seed) => seed[1]), mode: "markers",
        hoverinfo: "x", marker: { symbol: "line-ns-open", size: 9, color: colours.quiet },
      },
      {
        x: scores.means, y: rows, mode: "markers", hoverinfo: "text", hovertext: scores.shown,
        marker: { size: 9, color: colours.accent },
        error_x: {
          type: "data", symmetric: false, thickness: 2, width: 5, color: colours.accent,
          array: rows.map((i) => end(scores.high, i, 1)),
          arrayminus: rows.map((i) => end(scores.low, i, -1)),
        },
      },
    ];
    const longest = Math.max(...scores.names.map((name) => name.length));
    const left = Math.min(0.4 * plot.clientWidth, 20 + 7.5 * longest);
    Plotly.react(plot, traces, layout(plot, colours, {
      height: 110 + 26 * rows.length, margin: { l: left, r: 30, t: 50, b: 50 },
      hovermode: "closest",
      xaxis: { title: { text: scores.metric } },
      yaxis: {
        tickvals: rows, ticktext: scores.names, range: [rows.length - 0.4, -0.6], showgrid: false,
        ticks: "", showline: false,
      },
      shapes: limits.map((limit) => ({
        type: "line", x0: limit[1], x1: limit[1], yref: "paper", y0: 0, y1: 1,
        line: { color: colours.quiet, dash: "dash", width: 1 },
      })),
      annotations: limits.map((limit) => ({
        x: limit[1], yref: "paper", y: 1, yanchor: "bottom", text: limit[0], showarrow: false,
        font: { color: colours.quiet, size: 12 },
      })),
    }), config(plot));
  }

  function lossTraces(curves, everyRun) {
    const style = (one) => ({
      color: COLOURS[one.style % COLOURS.length], width: everyRun ? 1 : 2,
      dash: DASHES[Math.floor(one.style / COLOURS.length) % DASHES.length],
    });
    const traces = [];
    for (const one of curves) {
      const stopped = one.runs.filter((run) => run.stopped);
      const drawn = everyRun ? one.runs : [...(one.mean ? [one.mean] : []), ...stopped];
      drawn.forEach((curve, k) => {
        const ends = curve.stopped ? curve.steps.length - 1 : -1;
        traces.push({
          x: curve.steps, y: curve.losses, mode: curve.stopped ? "lines+markers" : "lines",
          name: one.name, legendgroup: String(one.style), showlegend: k === 0, line: style(one),
          marker: { symbol: "x", size: curve.steps.map((_, i) => (i === ends ? 9 : 0)) },
          hoverinfo: "x+y+text",
          text: curve.name + (curve.stopped ? `<br>${curve.stopped}` : ""),
        });
      });
    }
    return traces;
  }

  function drawLosses() {
    const plot = element("losses-plot");
    if (!plot) return;
    const colours = theme();
    const longest = Math.max(...data.losses.map((one) => one.name.length));
    const perLine = Math.max(1, Math.floor(plot.clientWidth / (80 + 7.5 * longest)));
    const below = 30 * Math.ceil(data.losses.length / perLine);
    const margin = { l: 50, r: 20, t: 35, b: 75 + below };
    Plotly.react(plot, lossTraces(data.losses, element("every-run").checked),
      layout(plot, colours, {
        height: 300 + margin.t + margin.b, margin, showlegend: true, hovermode: "closest",
        legend: {
          orientation: "h", x: 0, xanchor: "left", y: -60 / 300, yanchor: "top",
          entrywidth: 30 + 7.5 * longest, maxheight: below + 20, font: { size: 12 },
        },
        xaxis: { title: { text: "optimizer step", standoff: 8 } },
        yaxis: { type: element("losses-log").checked ? "log" : "linear" },
        annotations: [above("training loss", margin)],
      }), config(plot));
  }

  function drawSweep() {
    const plot = element("sweep-plot");
    if (!plot) return;
    const colours = theme(), sweep = data.sweep;
    const trace = {
      type: "heatmap", z: sweep.cells, text: sweep.labels, texttemplate: "%{text}",
      hovertext: sweep.texts, hoverinfo: "text", colorscale: "Cividis", xgap: 2, ygap: 2,
      hoverongaps: true, colorbar: { thickness: 12, outlinewidth: 0 },
    };
    const failed = sweep.cells.flatMap((line, y) =>
      line.flatMap((cell, x) => (cell === null ? [[x, y]] : [])));
    const margin = { l: 60, r: 10, t: 35, b: 60 };
    const axis = (title, values) => ({
      title: { text: title }, tickvals: [...values.keys()], ticktext: values, showgrid: false,
      showline: false, ticks: "", automargin: true,
      range: [-0.5, values.length - 0.5],
    });
    Plotly.react(plot, [trace], layout(plot, colours, {
      height: 130 + 48 * sweep.cells.length, margin,
      xaxis: axis(sweep.x, sweep.xValues), yaxis: axis("", sweep.yValues),
      shapes: failed.map(([x, y]) => ({
        type: "rect", layer: "below", x0: x - 0.49, x1: x + 0.49, y0: y - 0.48, y1: y + 0.48,
        fillcolor: colours.empty, line: { width: 0 },
      })),
      annotations: [
        ...failed.map(([x, y]) => ({
          x, y, text: "×", showarrow: false, font: { size: 18, color: colours.text },
          hovertext: sweep.texts[y][x], captureevents: true,
        })),
        ...(sweep.y ? [above(sweep.y, margin)] : []),
      ],
    }), config(plot));
  }

  function drawAll() {
    for (const draw of [drawTradeOffs, drawScores, drawLosses, drawSweep]) draw();
  }

  for (const letter of element("trade-offs-plot") ? ["x", "y"] : []) {
    chooseAxis(letter);
    element(`${letter}-axis`).addEventListener("change", () => {
      chooseAxis(letter);
      drawTradeOffs();
    });
    element(`${letter}-log`).addEventListener("change", drawTradeOffs);
  }
  if (element("limits")) {
    chooseLimits();
    element("limits").addEventListener("change", drawScores);
  }
  for (const id of element("losses-plot") ? ["every-run", "losses-log"] : []) {
    element(id).addEventListener("change", drawLosses);
  }
  keepDrawn(drawAll);
})();
