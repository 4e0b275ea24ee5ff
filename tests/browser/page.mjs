// Looks at the status page in a headless Chromium: `npm install`, then
// `node page.mjs http://127.0.0.1:9747/ FOLDER`. It takes pictures of the page of a running daemon
// in light and dark, wide and narrow, and then again with a hostile value in the place of every text
// that the page gets: none of them may become more than text. Of several clusters it looks at each.
import assert from "node:assert/strict";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [url, folder] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? await chromium.executablePath(),
  args: [...chromium.args, "--no-sandbox"],
  headless: "shell",
});

const HOSTILE = [
  "<img src=x onerror=\"window.hacked=1\">",
  "<script>window.hacked=2</script>",
  "\"><svg onload=window.hacked=3>",
  "</td></table><iframe srcdoc=\"<script>parent.hacked=4</script>\">",
  "javascript:window.hacked=5",
  "{{constructor.constructor('window.hacked=6')()}}",
  "\u202Eevil\u0000\u2028 " + "x".repeat(3000),
];

// Times stay times, so that the page gets as far as it does with true ones.
const poison = value => {
  let turn = 0;
  const walk = (value, key) => {
    if (typeof value === "string") return /^\d{4}-\d\d-\d\dT/.test(value) || key === "kind" ? value : HOSTILE[turn++ % HOSTILE.length];
    if (Array.isArray(value)) return value.map(item => walk(item, key));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, walk(item, key)]));
    return value;
  };
  return walk(value, "");
};

const fill = picture => {
  const time = picture.now;
  picture.live.held_up = HOSTILE.map(text => ({index: text, since: time, what: text, mend: text}));
  picture.live.troubles = HOSTILE;
  picture.live.event_types = HOSTILE.map((text, n) => ({type: text, count: n}));
  picture.live.dead_letters = HOSTILE.map(text => ({id: text, index: text, event_type: text, time, status: 400,
    error_type: text, reason: text, first_seen: time, payload: text}));
  picture.gaps = {count: 1, closed: 0, newest: HOSTILE.map(text => ({reason: text, from: time, to: time, detail: text}))};
  picture.runs.push({...picture.runs[0], kind: "backfill", to: time, filters: HOSTILE[0]});
};

const full = picture => {
  (picture.clusters ?? [picture]).forEach(fill);
  return poison(picture);
};

const visit = async (name, {width, height, scheme, change, nth}) => {
  const page = await browser.newPage();
  const faults = [];
  page.on("console", message => faults.push(message.text()));
  page.on("pageerror", error => faults.push(String(error)));
  page.on("dialog", dialog => { faults.push("a dialog"); dialog.dismiss(); });
  await page.setViewport({width, height});
  await page.emulateMediaFeatures([{name: "prefers-color-scheme", value: scheme}]);
  await page.setRequestInterception(true);
  page.on("request", async request => {
    if (!request.url().startsWith(url)) faults.push("it asks for " + request.url());
    if (change && request.url().endsWith("status.json")) {
      const answer = await fetch(request.url());
      const body = JSON.stringify(change(await answer.json()));
      return request.respond({status: 200, contentType: "application/json", body});
    }
    return request.continue();
  });
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("lag-plot").childElementCount > 0, {timeout: 20000});
  if (nth) {
    await page.click(`nav button:nth-child(${nth})`);
    await page.waitForSelector(`nav button:nth-child(${nth})[aria-pressed=true]`);
  }
  const seen = await page.evaluate(() => ({
    hacked: window.hacked,
    strange: document.querySelectorAll("img, iframe, a, object, embed, script:not(:last-of-type), td svg").length,
    scripts: document.scripts.length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    state: document.getElementById("state").textContent,
    title: document.getElementById("title").textContent,
    clusters: document.querySelectorAll("nav button").length,
    text: document.body.innerText,
  }));
  await page.screenshot({path: `${folder}/${name}.png`, fullPage: true});
  await page.close();
  // A browser asks for /favicon.ico by itself, which is not there.
  const real = faults.filter(fault => !fault.includes("404"));
  assert.deepEqual(real, [], name);
  assert.equal(seen.hacked, undefined, name);
  assert.equal(seen.strange, 0, name);
  assert.equal(seen.scripts, 1, name);
  assert.ok(seen.wide <= 0, `${name}: ${seen.wide} pixels too wide`);
  return seen;
};

try {
  const wide = {width: 1280, height: 900}, phone = {width: 390, height: 844};
  const plain = await visit("light", {...wide, scheme: "light"});
  for (let nth = 2; nth <= plain.clusters; nth += 1) {
    const other = await visit(`cluster-${nth}`, {...wide, scheme: "light", nth});
    assert.notEqual(other.title, plain.title, "another cluster is another page");
    await visit(`cluster-${nth}-phone`, {...phone, scheme: "dark", nth});
  }
  await visit("dark", {...wide, scheme: "dark"});
  await visit("phone", {...phone, scheme: "light"});
  for (const [name, size] of [["hostile", wide], ["hostile-phone", phone]]) {
    const seen = await visit(name, {...size, scheme: "light", change: full});
    assert.ok(seen.text.includes(HOSTILE[1]), "a hostile value is shown as the text that it is");
  }
  console.log("the page is well: " + plain.state);
} finally {
  await browser.close();
}
