"use strict";
// How all plots look: colours that follow the reader's theme, axes, buttons.
const looks = (function () {
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "8px,2px", "8px,2px,2px,2px"];
  // Named one by one: the usual ones include a button that goes to a network.
  const BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const NARROW = 600; // pixels

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    return {
      text: colour("--text"), quiet: colour("--quiet"), line: colour("--line"),
      accent: colour("--accent"), paper: colour("--paper"), empty: colour("--empty"),
      font: getComputedStyle(document.body).fontFamily,
    };
  }

  function config(plot) {
    return {
      displaylogo: false, modeBarButtons: BUTTONS,
      displayModeBar: plot.clientWidth < NARROW ? false : "hover",
    };
  }

  function layout(plot, colours, changes) {
    const axis = {
      gridcolor: colours.line, linecolor: colours.quiet, zeroline: false, showline: true,
      tickcolor: colours.quiet, ticks: "outside", fixedrange: false,
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", width: plot.clientWidth,
      font: { family: colours.font, color: colours.text, size: 13 },
      hoverlabel: {
        bgcolor: colours.paper, bordercolor: colours.quiet,
        font: { color: colours.text, family: colours.font }, align: "left",
      },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.quiet, activecolor: colours.accent },
      showlegend: false, ...changes,
      xaxis: { ...axis, ...changes.xaxis }, yaxis: { ...axis, ...changes.yaxis },
    };
  }

  // The name of the upward axis, above the plot: along the axis there is little room for it.
  function above(name, margin) {
    return {
      x: 0, xref: "paper", xanchor: "left", xshift: 12 - margin.l, text: `↑ ${name}`,
      y: 1, yref: "paper", yanchor: "bottom", yshift: 6, showarrow: false,
    };
  }

  // The ends of an axis with room on both sides, in the axis's own coordinates.
  function range(values, isLog) {
    const own = isLog ? values.map(Math.log10) : values;
    const low = Math.min(...own), high = Math.max(...own);
    const room = 0.12 * (high - low) || Math.abs(high) * 0.1 || 1;
    return [low - room, high + room];
  }

  // Draw now, and again whenever the page gets another size, other colours or goes on paper.
  function keepDrawn(drawAll) {
    let waiting = 0;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(drawAll, 100);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    // Paper is narrow and white whatever the window is.
    function print(isBeginning) {
      document.documentElement.classList.toggle("printing", isBeginning);
      drawAll();
    }
    addEventListener("beforeprint", () => print(true));
    addEventListener("afterprint", () => print(false));
    drawAll();
  }

  return { COLOURS, DASHES, theme, config, layout, above, range, keepDrawn };
})();
