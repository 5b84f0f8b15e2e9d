// The peer "node-ws" of bench.py: node bench_peers.cjs URI TABLES. What people would use in Node:
// ws for the frames, JSON of the language, and whole numbers for exact arithmetic.
"use strict";
const { readFileSync } = require("fs");
const WebSocket = require("ws");

const [uri, path] = process.argv.slice(2);

// A decimal number in plain notation, in units of 10^-15.
function exact(text) {
  const [whole, places = ""] = text.split(".");
  return BigInt(whole + places.padEnd(15, "0"));
}

// A stake in euro, to five places, half to even; a stake of the bench is not negative.
function toEuro(stake, units) {
  const scaled = stake * 100000n;
  const twice = 2n * (scaled % units);
  const quotient = scaled / units;
  const up = twice > units || (twice === units && quotient % 2n === 1n);
  return Number(up ? quotient + 1n : quotient) / 1e5;
}

const tables = {};
for (const [day, table] of Object.entries(JSON.parse(readFileSync(path, "utf8")))) {
  tables[day] = Object.fromEntries(Object.entries(table).map(([code, text]) => [code, exact(text)]));
}

const link = new WebSocket(uri, { perMessageDeflate: false, rejectUnauthorized: false });
const beat = () => link.send('{"type":"heartbeat"}');
link.on("open", () => { beat(); setInterval(beat, 1000); });
link.on("close", () => process.exit(0));
link.on("message", (data) => {
  const message = JSON.parse(data.toString());
  if (message.type === "heartbeat") return;
  const payload = message.payload;
  const made = new Date(payload.date).toISOString();
  const units = tables[made.slice(0, 10)][payload.currency];
  if (units === undefined) {
    const problem = `Unable to convert stake. Error: unknown currency ${payload.currency}`;
    link.send(JSON.stringify({ type: "error", id: message.id, message: problem }));
    return;
  }
  payload.stake = toEuro(exact(String(payload.stake)), units);
  payload.currency = "EUR";
  payload.date = new Date().toISOString();
  link.send(JSON.stringify(message));
});
