// The status page: polls the figures each second and shows them. Texts are set only by textContent
// or as an attribute of a drawing, so that no text of a peer is parsed as markup.
"use strict";

const PERIOD = 1000; // ms between polls
const TIMEOUT = 5000; // ms for an answer
const KEPT = 600; // samples, a second each
const CURRENT = 5; // samples in the mean of the large figures
// The span of a chart grows with the history; each has 120 points.
const SPANS = [
  { samples: 120, each: 1, words: "2 min ago" },
  { samples: 240, each: 2, words: "4 min ago" },
  { samples: 600, each: 5, words: "10 min ago" },
];
const WIDTH = 600; // of a drawing, in its own units
const HEIGHT = 160;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

let samples = []; // [converted a second, refused a second, p50 in ms or null, p99 in ms or null]
let taken = 0; // the service's count of samples at the last poll
let uptime = 0;
let heardAt = null;

// Texts.

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function coarse(seconds) {
  if (seconds < 60) return "< 1 min";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return duration(seconds);
}

function ago(seconds) {
  return seconds < 60 ? "under a minute ago" : `${coarse(seconds)} ago`;
}

function milliseconds(ms) {
  if (ms >= 1000) return `${Number((ms / 1000).toPrecision(3))} s`;
  return `${Number(ms.toPrecision(ms < 100 ? 2 : 3))} ms`;
}

function clock(iso, today) {
  const time = iso.slice(11, 19);
  return iso.slice(0, 10) === today.slice(0, 10) ? time : `${iso.slice(0, 10)} ${time}`;
}

function times(count) {
  return count === 1 ? "once" : `${whole.format(count)} times`;
}

function count(number, noun) {
  return `${whole.format(number)} ${noun}${number === 1 ? "" : "s"}`;
}

const spaced = (word) => word.replaceAll("-", " ");

// Elements.

function element(tag, name, ...content) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...content.map(String));
  return made;
}

function within(parent, ...children) {
  parent.append(...children);
  return parent;
}

function say(id, text) {
  const target = byId(id);
  if (target.textContent !== text) target.textContent = text;
}

function describe(id, words) {
  byId(id).setAttribute("aria-label", words);
}

// A list is rebuilt only when its content changes, so that a selection or scroll position survives.
const built = new Map();
function fill(id, items, build) {
  const key = JSON.stringify(items);
  if (built.get(id) === key) return;
  built.set(id, key);
  byId(id).replaceChildren(...items.flatMap(build));
}

function facts(id, rows) {
  fill(id, rows, ([term, value, more, name, event]) => {
    const description = element("dd", name, value);
    if (more) within(description, " ", element("small", "", more));
    if (!event) return [element("dt", name, term), description];
    const meaning = element("a", "", term);
    meaning.href = `#${event}`;
    return [within(element("dt", name), meaning), description];
  });
}

// Drawings.

function shape(tag, name, attributes) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function grid(y, name = "grid") {
  return shape("line", name, { x1: 0, x2: WIDTH, y1: y, y2: y });
}

function scale(id, marks, height) {
  fill(id, marks.map(({ y, words }) => [y, words]), ([y, words]) => {
    const mark = element("li", "", words);
    mark.style.top = `${(100 * y) / height}%`;
    return mark;
  });
}

const known = (value) => value !== null && value !== undefined;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// Points of the chart: samples in bins whose members do not change over time.
function points() {
  const span = SPANS.find(({ samples: most }) => samples.length <= most) ?? SPANS.at(-1);
  const first = taken - samples.length;
  const bins = new Map();
  samples.forEach((sample, index) => {
    const bin = Math.floor((first + index) / span.each);
    if (!bins.has(bin)) bins.set(bin, []);
    bins.get(bin).push(sample);
  });
  const last = Math.floor((taken - 1) / span.each);
  const count = span.samples / span.each;
  return {
    words: span.words,
    bins: [...bins]
      .filter(([bin]) => last - bin < count)
      .map(([bin, members]) => ({ x: WIDTH * (1 - (last - bin) / (count - 1)), members })),
  };
}

// The runs of dots without a gap.
function stretches(dots) {
  const found = [];
  let current = [];
  for (const dot of dots) {
    if (known(dot.y)) {
      current.push(dot);
    } else if (current.length) {
      found.push(current);
      current = [];
    }
  }
  if (current.length) found.push(current);
  return found;
}

const place = ({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;

function line(dots) {
  return stretches(dots)
    .map((stretch) => `M${stretch.map(place).join("L")}${stretch.length === 1 ? "h0.1" : ""}`)
    .join("");
}

// The area between two lines that have their gaps in the same places.
function band(dots, floor) {
  const floors = stretches(floor);
  return stretches(dots)
    .map((stretch, index) => {
      const back = [...floors[index]].reverse();
      return `M${stretch.map(place).join("L")}L${back.map(place).join("L")}Z`;
    })
    .join("");
}

// The least of 1, 2, 4, 5, 6, 8, 10, 20 ... that is not below the value.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function drawThroughput() {
  const { words, bins } = points();
  const all = bins.map(({ x, members }) => ({
    x,
    answers: mean(members.map((sample) => sample[0] + sample[1])),
    errors: mean(members.map((sample) => sample[1])),
  }));
  const top = round(Math.max(1, ...all.map((point) => point.answers)));
  const y = (value) => HEIGHT * (1 - value / top);
  const answers = all.map((point) => ({ x: point.x, y: y(point.answers) }));
  const floor = all.map((point) => ({ x: point.x, y: HEIGHT }));
  const errors = all.map((point) => ({ x: point.x, y: y(point.errors) }));
  byId("throughput-plot").replaceChildren(
    grid(0), grid(HEIGHT / 2), grid(HEIGHT),
    shape("path", "area", { d: band(answers, floor) }),
    shape("path", "line", { d: line(answers) }),
    shape("path", "dashes", { d: line(errors) }),
  );
  scale("throughput-scale", [
    { y: 0, words: whole.format(top) },
    { y: HEIGHT / 2, words: whole.format(top / 2) },
    { y: HEIGHT, words: "0" },
  ], HEIGHT);
  say("throughput-from", words);

  const recent = samples.slice(-CURRENT);
  say("throughput", recent.length ? mean(recent.map((sample) => sample[0] + sample[1])).toFixed(1) : "–");
  const wrong = recent.length ? mean(recent.map((sample) => sample[1])).toFixed(1) : "none";
  describe("throughput-plot", `Answers a second, from ${words}: at present `
    + `${byId("throughput").textContent}, ${wrong} of them errors; the scale ends at ${top}`);
}

function drawLatency() {
  const { words, bins } = points();
  const all = bins.map(({ x, members }) => {
    const answered = members.filter((sample) => known(sample[2]));
    const count = answered.reduce((sum, sample) => sum + sample[0] + sample[1], 0);
    const time = answered.reduce((sum, sample) => sum + (sample[0] + sample[1]) * sample[2], 0);
    return {
      x,
      p50: answered.length ? time / count : null,
      p99: answered.length ? Math.max(...answered.map((sample) => sample[3])) : null,
    };
  });
  const values = all.flatMap((point) => [point.p50, point.p99]).filter((value) => value > 0);
  // At least two decades: answers by a cached rate and from a source differ that much.
  const low = values.length ? Math.floor(Math.log10(Math.min(...values))) : -1;
  const high = Math.max(low + 2, values.length ? Math.ceil(Math.log10(Math.max(...values))) : 1);
  const y = (value) =>
    known(value) ? HEIGHT * (1 - (Math.log10(Math.max(value, 10 ** low)) - low) / (high - low)) : null;
  const middle = all.map((point) => ({ x: point.x, y: y(point.p50) }));
  const upper = all.map((point) => ({ x: point.x, y: y(point.p99) }));
  const decades = Array.from({ length: high - low + 1 }, (_, index) => low + index);
  byId("latency-plot").replaceChildren(
    ...decades.map((decade) => grid(y(10 ** decade))),
    shape("path", "area", { d: band(upper, middle) }),
    shape("path", "line", { d: line(middle) }),
  );
  scale("latency-scale",
    decades.map((decade) => ({ y: y(10 ** decade), words: milliseconds(10 ** decade) })), HEIGHT);
  say("latency-from", words);

  const recent = samples.slice(-CURRENT).filter((sample) => known(sample[2]));
  const count = recent.reduce((sum, sample) => sum + sample[0] + sample[1], 0);
  const time = recent.reduce((sum, sample) => sum + (sample[0] + sample[1]) * sample[2], 0);
  const p99 = recent.length ? milliseconds(Math.max(...recent.map((sample) => sample[3]))) : "–";
  say("latency", recent.length ? milliseconds(time / count) : "–");
  say("latency-p99", p99);
  describe("latency-plot", `Time to answer, from ${words}: at present half within `
    + `${byId("latency").textContent}, 99 % within ${p99}`);
}

function drawHeartbeats({ heartbeat: { gaps: all, timeout, age }, stats: { heartbeats } }) {
  const gaps = all.slice(-60);
  const height = 80;
  const top = Math.max(1.25 * timeout, ...gaps);
  const y = (seconds) => height * (1 - seconds / top);
  const room = WIDTH / 60;
  const start = 60 - gaps.length;
  byId("heartbeats-plot").replaceChildren(
    grid(height),
    ...gaps.map((gap, index) =>
      shape("rect", gap >= timeout ? "late" : "beat", {
        x: (start + index) * room + 1.5, width: room - 3, y: y(gap), height: height - y(gap),
      })),
    grid(y(timeout), "limit"),
  );
  scale("heartbeats-scale", [
    { y: y(timeout), words: `limit ${timeout} s` },
    { y: height, words: "0 s" },
  ], height);
  const last = known(age) ? `the last ${duration(age)} ago` : "none on the present connection";
  const sorted = [...all].sort((one, other) => one - other);
  const spread = all.length
    ? `; median gap ${sorted[sorted.length >> 1].toFixed(2)} s, longest ${sorted.at(-1).toFixed(2)} s` : "";
  const words = `${whole.format(heartbeats)} received, ${last}${spread}.`;
  say("heartbeats", words);
  describe("heartbeats-plot", `Seconds between the last ${gaps.length} heartbeats: ${words}`);
}

// Sections.

const sum = (kinds) => Object.values(kinds).reduce((total, count) => total + count, 0);

function showConnection({ stats, link_age: age, retry_in, now }) {
  const rows = [];
  const since = new Date(Date.parse(now) - 1000 * (age ?? 0)).toISOString();
  const from = known(age) ? `for ${duration(age)}, since ${clock(since, now)}` : "since the start";
  rows.push(["State", stats.link_up ? "up" : "down", from]);
  if (!stats.link_up && known(retry_in)) {
    rows.push(["Next attempt", retry_in > 0 ? `in ${duration(retry_in)}` : "under way"]);
  }
  const lost = sum(stats.lost);
  rows.push(["Opened", times(stats.links_opened), lost ? `${whole.format(lost)} losses and failed attempts` : "never lost"]);
  if (stats.link_ended) rows.push(["Last failure", stats.link_ended, "", "", "connection.lost"]);
  facts("connection", rows);
}

function showMessages({ stats: messages, waiting, outbox, audit }) {
  const parts = (kinds) => Object.entries(kinds)
    .filter(([, count]) => count)
    .sort(([, one], [, other]) => other - one)
    .map(([kind, count]) => [spaced(kind), whole.format(count), "", "sub"]);
  facts("messages", [
    ["Converted", whole.format(messages.converted), "", "amount"],
    ["Error replies", whole.format(sum(messages.refused)), "", "amount", "conversion.failed"],
    ...parts(messages.refused),
    ["Dropped", whole.format(sum(messages.dropped)), "without an answer", "amount", "message.dropped"],
    ...parts(messages.dropped),
    ["Undelivered", whole.format(messages.undelivered), "replies never sent", "amount", "reply.undelivered"],
    ["Waiting", whole.format(waiting), "for a rate, at present", "amount"],
    ["Outbox", whole.format(outbox), "not written yet, at present", "amount"],
    ...(messages.internal_errors ? [["Internal errors", whole.format(messages.internal_errors), "see the log", "amount", "internal_error"]] : []),
    ...(audit ? [["Audit lines waiting", whole.format(audit.waiting), audit.failing ? `not written: ${audit.failing}` : "not written yet, at present", "amount"]] : []),
    ...(audit?.lost ? [["Audit lines lost", whole.format(audit.lost), "see the log", "amount"]] : []),
  ]);
}

function sourceState({ state, fetched_ago, limited_for }) {
  switch (state) {
    case "succeeded": return `last fetch succeeded ${ago(fetched_ago)}`;
    case "failed": return `last fetch failed ${ago(fetched_ago)}`;
    case "incomplete": return `had nothing for the day asked ${ago(fetched_ago)}`;
    case "rate-limited": return `rate-limited for ${limited_for < 60 ? "under a minute" : coarse(limited_for)}`;
    default: return state;
  }
}

function showSources({ sources }) {
  const items = sources.map((source) => {
    const sentences = [];
    if (known(source.answered_ago)) {
      sentences.push(`${count(source.answered, "answer")}, the last ${ago(source.answered_ago)} in ${milliseconds(source.took * 1000)}`);
    } else {
      sentences.push("No answer yet");
    }
    if (source.failed) sentences.push(`failed ${times(source.failed)}`);
    if (source.implausible) sentences.push(`${count(source.implausible, "implausible quote")} not used`);
    const state = sourceState(source);
    const quota = [];
    if (known(source.month_left)) {
      const total = known(source.month_total) ? ` of ${whole.format(source.month_total)}` : "";
      quota.push(`${whole.format(source.month_left)}${total} calls left this month`);
    }
    return {
      name: source.name,
      kind: source.state,
      state,
      sentence: `${sentences.join(", ")}.`,
      failure: source.failure ? `It ${source.failure}.` : "",
      quota: quota.join(", "),
      share: known(source.month_left) && source.month_total ? Math.max(0, Math.min(1, source.month_left / source.month_total)) : null,
    };
  });
  fill("sources", items, (item) => {
    const entry = within(element("li", ""),
      within(element("div", "head"), element("span", "name", item.name), element("span", `state ${item.kind}`, item.state)));
    if (item.failure) within(entry, element("p", "failure", item.failure));
    within(entry, element("p", "", item.sentence));
    if (known(item.share)) {
      const bar = element("div", "");
      bar.style.width = `${100 * item.share}%`;
      within(entry, within(element("div", "quota"), bar));
    }
    if (item.quota) within(entry, element("p", "", item.quota));
    return entry;
  });
}

function showCurrencies({ currencies, now }) {
  const today = now.slice(0, 10);
  const items = currencies.map(({ currency, converted, euros, text: rate, provider, day, asked }) => [
    currency, rate ?? "–",
    !rate ? "" : `${provider}, of ${day}${asked === today ? "" : `, for ${asked}`}`,
    whole.format(converted), whole.format(Math.round(euros)),
  ]);
  fill("currencies", items.length ? items : [["", "None yet."]], (item) => {
    const row = element("tr", "");
    if (item.length === 2) {
      const cell = element("td", "empty", item[1]);
      cell.colSpan = 4;
      return within(row, cell);
    }
    const [currency, rate, source, converted, euros] = item;
    return within(row, element("td", "", currency),
      within(element("td", "wrap", rate), " ", element("small", "", source)),
      element("td", "number", converted), element("td", "number", euros));
  });
}

function showRecentErrors({ recent_errors, now }) {
  const items = recent_errors.map((error) =>
    [error.words, error.at, clock(error.at, now), times(error.count), error.event]);
  fill("recent-errors", items.length ? items : [["None so far."]], ([words, at, time, count, event]) => {
    const entry = element("li", at ? "" : "empty", words);
    if (!at) return entry;
    const stamp = element("time", "", time);
    stamp.dateTime = at;
    const meaning = element("a", "", event);
    meaning.href = `#${event}`;
    return within(entry, within(element("p", ""), stamp, `, ${count}, `, meaning));
  });
}

function showState(state, title, why) {
  byId("banner").dataset.state = state;
  say("state", title);
  say("why", why);
  document.title = `${title} · ratebridge`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function show(figures) {
  byId("main").classList.remove("stale");
  const stopping = figures.status === "stopping";
  const why = stopping ? "Requests in flight are answered, new ones are refused." : `${capital(figures.why)}.`;
  const state = ["ready", "degraded"].includes(figures.status) ? figures.status : "down";
  showState(state, capital(figures.status), why);
  say("feed", figures.feed ?? "");
  say("about", `version ${figures.version}, up for ${duration(figures.uptime)}, ${clock(figures.now, figures.now)} UTC`);
  drawThroughput();
  drawLatency();
  drawHeartbeats(figures);
  showConnection(figures);
  showMessages(figures);
  showSources(figures);
  showCurrencies(figures);
  showRecentErrors(figures);
}

// The loop.

function keep(figures) {
  if (figures.uptime < uptime) samples = []; // the service was restarted
  uptime = figures.uptime;
  taken = figures.taken;
  samples = samples.concat(figures.samples).slice(-KEPT);
}

async function ask(after) {
  const answer = await fetch(`status.json?after=${after}`, { signal: AbortSignal.timeout(TIMEOUT), cache: "no-store" });
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
  return answer.json();
}

async function poll() {
  try {
    let figures = await ask(taken);
    if (figures.uptime < uptime) figures = await ask(0);
    heardAt = new Date();
    keep(figures);
    show(figures);
  } catch (error) {
    byId("main").classList.add("stale");
    const since = heardAt ? ` since ${heardAt.toISOString().slice(11, 19)} UTC; the figures are from then` : "";
    showState("down", "No answer", `The service has not answered${since}.`);
    if (!(error instanceof DOMException || error instanceof TypeError)) console.error(error);
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((resolve) => {
      const timer = setTimeout(wake, PERIOD);
      function wake() {
        clearTimeout(timer);
        document.removeEventListener("visibilitychange", wake);
        resolve();
      }
      document.addEventListener("visibilitychange", wake);
    });
  }
}

run();
