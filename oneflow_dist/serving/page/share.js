// Documents as one file that replays them, anywhere and without a network.

import { h } from "./player.js";

const POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

async function source(name) {
  const response = await fetch(`/page/${name}`);
  if (!response.ok) throw new Error(`/page/${name} is not there (status ${response.status}); is the server gone?`);
  return response.text();
}

/** Text that ends no element and begins no comment, wherever it stands in a page. */
function escape(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/** JSON that stays inside its script element, whatever is in it. */
function inScript(data) {
  return JSON.stringify(data).replaceAll("<", "\\u003c");
}

/** A page that holds the documents and their player. */
export async function pageOf(title, documents) {
  const [script, style] = await Promise.all([source("player.js"), source("player.css")]);
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escape(title)}</title>
<style>
${style}
</style>
<body class="shared">
<main></main>
<p class="about">Written with oneflow_dist. Play, or drag the slider: each word has the colour of its step.</p>
<script type="application/json" id="documents">${inScript(documents)}</script>
<script type="module">
${script}
replay(document.querySelector("main"), JSON.parse(document.getElementById("documents").textContent)).toggle();
</script>
</html>
`;
}

/** Save it, with the browser's own dialogue. */
export async function download(name, title, documents) {
  const url = URL.createObjectURL(new Blob([await pageOf(title, documents)], { type: "text/html" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
