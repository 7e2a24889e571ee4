"use strict";
// Draws the charts whose data lies in #charts. Plotly itself is in #plotly, compressed, and runs only from there.
(async () => {
  const data = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const fail = (text) => document.querySelectorAll(".plot").forEach((node) => { node.textContent = text; });

  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  } catch (error) {
    fail("This browser is too old to draw the charts (it has no DecompressionStream). The numbers are in metrics.jsonl.");
    return;
  }

  // Plotly reads a few HTML tags in labels; names come from recipes, so they are shown as they are.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const faded = (color, alpha) => {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };

  function traces(chart, palette) {
    if (chart.kind === "bars" || chart.kind === "dots") return figures(chart, palette);
    const format = chart.percent ? ".1%" : ".4~g";
    const hover = `${chart.kind === "calibration" ? "said %{x:.1%}" : `${chart.unit} %{x}`}: %{y:${format}}`;
    const out = [];
    const shown = chart.series.filter((s) => s.style !== "raw" && s.style !== "thin");
    for (const s of chart.series) {
      const color = palette[s.color % palette.length];
      const trace = {
        x: s.x, y: s.y, name: plain(s.name), type: "scatter", mode: "lines", connectgaps: false,
        line: { color, width: 2 }, hovertemplate: hover, showlegend: shown.length > 1 && !s.unnamed,
      };
      if (s.style === "raw") Object.assign(trace, { line: { color: faded(color, 0.28), width: 1 }, hoverinfo: "skip", hovertemplate: null, showlegend: false });
      if (s.style === "thin") Object.assign(trace, { line: { color: faded(color, 0.5), width: 1.25 }, hoverinfo: "skip", hovertemplate: null, showlegend: false });
      if (s.style === "bold") trace.line.width = 2.5;
      if (s.x.length === 1) Object.assign(trace, { mode: "markers", marker: { color, size: 8 } });
      if (chart.kind === "stack") Object.assign(trace, { stackgroup: "one", line: { color, width: 0.5 }, fillcolor: faded(color, 0.75), hovertemplate: "%{y:.3~g} s" });
      if (chart.kind === "calibration") {
        const ends = { color: faded(color, 0.6), thickness: 1.5, width: 4 };
        const up = s.high.map((high, i) => high - s.y[i]), down = s.low.map((low, i) => s.y[i] - low);
        const least = Math.min(0.5, ...s.x);
        out.push({ x: [least, 1], y: [least, 1], mode: "lines", line: { color: palette[7], width: 1, dash: "dash" }, hoverinfo: "skip", showlegend: false });
        Object.assign(trace, { mode: "lines+markers", marker: { color, size: 8 }, error_y: { type: "data", symmetric: false, array: up, arrayminus: down, ...ends } });
      } else if (s.low) {
        const band = { x: s.x, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
        out.push({ ...band, y: s.low }, { ...band, y: s.high, fill: "tonexty", fillcolor: faded(color, 0.16) });
        Object.assign(trace, {
          mode: "lines+markers", marker: { color, size: 7 },
          customdata: s.low.map((low, i) => [low, s.high[i]]),
          hovertemplate: `${hover} (%{customdata[0]:${format}} to %{customdata[1]:${format}})`,
        });
      }
      out.push(trace);
    }
    return out;
  }

  // Histograms and clouds of dots.
  function figures(chart, palette) {
    return chart.series.map((s) => {
      const color = palette[s.color % palette.length];
      const trace = { x: s.x, y: s.y, name: plain(s.name), showlegend: chart.series.length > 1 };
      if (chart.kind === "bars") return { ...trace, type: "bar", width: s.width, marker: { color: faded(color, 0.5), line: { color, width: 1 } }, hovertemplate: "around %{x:.3~g}: %{y:.1%}" };
      const size = chart.frame ? 5 : s.x.length > 400 ? 4 : 6;
      return { ...trace, type: "scatter", mode: "markers", marker: { color: faded(color, 0.55), size }, hovertemplate: chart.frame ? "%{fullData.name}<extra></extra>" : chart.unit === "step" ? "%{x} tokens: %{y:.3~g}" : `${chart.unit} %{x:.0f}: %{y:.3~g}` };
    });
  }

  // Names of borders that lie close together go one above the other. Returns how many lines they take.
  function spread(chart, annotations) {
    const xs = chart.series.flatMap((s) => s.x), left = Math.min(...xs), ends = [];
    const width = Math.max(100, document.getElementById(chart.id).clientWidth - 66) / (Math.max(...xs) - left || 1);
    for (const a of chart.marks.length > 1 ? annotations : []) {
      const start = (a.x - left) * width;
      let row = ends.findIndex((end) => end <= start);
      if (row < 0) row = ends.push(0) - 1;
      ends[row] = start + 8 + 6 * a.text.length;
      a.yshift = 13 * row;
    }
    return ends.length || 1;
  }

  function layout(chart, css) {
    const ink = css.getPropertyValue("--muted").trim();
    const grid = css.getPropertyValue("--line").trim();
    const shapes = [], annotations = [];
    const mark = (x, label, dash, anchor) => {
      if (x > 0 || chart.marks.length === 0) shapes.push({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: ink, width: 1, dash } });
      annotations.push({ x, y: 1, yref: "paper", yanchor: "bottom", xanchor: anchor, text: plain(label), showarrow: false, font: { size: 11, color: ink } });
    };
    if (chart.best !== null) mark(chart.best, `best: step ${chart.best}`, "dot", "center");
    for (const m of chart.marks) mark(m.x, m.label, "dash", "left");
    const rows = spread(chart, annotations);
    if (chart.zero) shapes.push({ type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: ink, width: 1, dash: "dot" } });
    if (chart.kind === "dots" && chart.zero) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: ink, width: 1, dash: "dot" } });
    if (chart.level !== null) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: chart.level, y1: chart.level, line: { color: ink, width: 1, dash: "dot" } });
    const named = chart.series.length > 1, low = chart.xlabel ? 44 : 26;
    const values = chart.series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]).filter((y) => y !== null);
    // Plotly would widen a constant share to twice its size.
    const flat = chart.percent && Math.min(...values) === Math.max(...values);
    return {
      autosize: true, height: chart.frame ? 380 : chart.wide ? 300 : chart.xlabel ? 270 : 230,
      margin: { l: chart.ylabel ? 64 : 52, r: 14, t: chart.frame ? 64 : annotations.length ? 9 + 13 * rows : chart.xlabel && named ? 28 : 8, b: low },
      barmode: "overlay",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      xaxis: {
        gridcolor: grid, zeroline: false, linecolor: grid, title: chart.xlabel ? { text: plain(chart.xlabel), font: { size: 12 }, standoff: 6 } : undefined,
        tickformat: chart.kind === "calibration" || chart.shares ? ".0%" : undefined,
        range: chart.shares ? [-0.02, 1.02] : chart.frame ? chart.frame.slice(0, 2) : undefined, showticklabels: !chart.frame,
        tickvals: chart.ticks ? chart.ticks.map((t) => t[0]) : undefined, ticktext: chart.ticks ? chart.ticks.map((t) => plain(t[1])) : undefined,
        dtick: chart.unit === "round" && Math.max(...chart.series.flatMap((s) => s.x)) <= 20 ? 1 : undefined,
      },
      yaxis: {
        title: chart.ylabel ? { text: plain(chart.ylabel), font: { size: 12 }, standoff: 6 } : undefined,
        gridcolor: grid, zeroline: false, type: chart.log ? "log" : "linear", rangemode: chart.kind === "stack" || chart.kind === "bars" ? "tozero" : "normal",
        tickformat: chart.percent || chart.shares ? ".2~%" : undefined, exponentformat: "power", nticks: 6,
        dtick: chart.log && Math.max(...values) < 100 * Math.min(...values) ? "D2" : undefined, // ticks at 1, 2, 5
        range: chart.shares ? [-0.02, 1.02] : flat ? [-0.03, 1.03] : chart.frame ? chart.frame.slice(2) : undefined, showticklabels: !chart.frame,
        ticksuffix: chart.kind === "stack" ? " s" : "",
      },
      hovermode: chart.xlabel ? "closest" : "x unified", hoverlabel: { bgcolor: css.getPropertyValue("--card").trim(), bordercolor: grid },
      legend: chart.xlabel ? { orientation: "h", y: 1.02, x: 0, yanchor: "bottom", traceorder: "normal", font: { size: 11 } } : { orientation: "h", y: chart.wide ? -0.1 : -0.15, x: 0, yanchor: "top", traceorder: "normal", font: { size: 11 } },
      shapes, annotations,
    };
  }

  function draw() {
    const css = getComputedStyle(document.documentElement);
    const palette = [1, 2, 3, 4, 5, 6, 7, 8].map((n) => css.getPropertyValue(`--c${n}`).trim());
    for (const chart of data) {
      const config = { responsive: true, displayModeBar: false };
      Plotly.react(document.getElementById(chart.id), traces(chart, palette), layout(chart, css), config);
    }
  }
  draw();
  dark.addEventListener("change", draw);
})();
