"use strict";
// The plots of one weight. Numbers come ready from the page; colours follow the reader's theme.
(function () {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const { COLOURS, theme, config, layout, above, keepDrawn } = looks;
  const element = (id) => document.getElementById(id);
  const chosen = () => data.weights[element("weight").value];

  function drawSpectrum() {
    const plot = element("spectrum-plot"), colours = theme(), one = chosen();
    const bins = [one.density.length, one.density[0].length];
    const step = bins.map((count, k) => one.shape[k] / count);
    const margin = { l: 60, r: 10, t: 35, b: 55 };
    const trace = {
      type: "heatmap", z: one.density, colorscale: "Cividis",
      x0: (step[1] - 1) / 2, dx: step[1], y0: (step[0] - 1) / 2, dy: step[0],
      hovertemplate: "frequencies %{y:.0f}, %{x:.0f}<br>log10: %{z}<extra></extra>",
      colorbar: { thickness: 12, outlinewidth: 0, title: { text: "log10", side: "top" } },
    };
    const axis = { showgrid: false, showline: false, ticks: "", automargin: true };
    Plotly.react(plot, [trace], layout(plot, colours, {
      height: 450, margin,
      xaxis: { ...axis, title: { text: "frequency along the second axis" } },
      yaxis: { ...axis, autorange: "reversed", title: { text: "frequency along the first axis" } },
    }), config(plot));
  }

  function drawEnergy() {
    const plot = element("energy-plot"), colours = theme(), one = chosen();
    const margin = { l: 50, r: 20, t: 35, b: 110 };
    const trace = (lines, k, isOwn) => ({
      x: one.ranks, y: lines[k], mode: isOwn ? "lines+markers" : "lines", marker: { size: 5 },
      name: data.titles[k], showlegend: isOwn, legendgroup: String(k),
      line: { color: COLOURS[k], width: isOwn ? 2 : 1.2, dash: isOwn ? "solid" : "dot" },
      hovertemplate: `${isOwn ? "" : "iid Gaussian, "}${data.titles[k]}<br>` +
        "r = %{x}: %{y:.3f}<extra></extra>",
    });
    const kinds = [...data.titles.keys()];
    const limit = data.gaussian[one.shape];
    const traces = [
      ...kinds.map((k) => trace(limit, k, false)), ...kinds.map((k) => trace(one.lines, k, true)),
    ];
    Plotly.react(plot, traces, layout(plot, colours, {
      height: 440, margin, showlegend: true, hovermode: "closest",
      legend: { orientation: "h", x: 0, xanchor: "left", y: -0.2, yanchor: "top" },
      xaxis: { type: "log", dtick: "D2", title: { text: "rank r", standoff: 8 } },
      yaxis: { range: [-0.02, 1.03] },
      annotations: [above("share of the squared norm", margin)],
    }), config(plot));
  }

  function drawAll() {
    drawSpectrum();
    drawEnergy();
  }

  if (!element("weight")) return;
  element("weight").addEventListener("change", drawAll);
  keepDrawn(drawAll);
})();
