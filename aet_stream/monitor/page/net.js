// One WebSocket for words, plain GET for pixels. Reconnects by itself; whoever falls behind is told how much was left out.

const FIRST_S = 0.5;
const LONGEST_S = 10;

const EVENTS = new URL("api/v1/events", document.baseURI);

/** Listens for ever: `hear` gets every message; `lost` is called when the connection ends, and with the reason where it was refused. */
export function listen(hear, lost) {
  let wait = FIRST_S;
  const open = () => {
    const socket = new WebSocket(EVENTS.href.replace(/^http/, "ws"));
    let refused = true;
    socket.onopen = () => (refused = false);
    socket.onmessage = (event) => {
      wait = FIRST_S;
      hear(JSON.parse(event.data));
    };
    socket.onclose = () => {
      if (refused) whyRefused().then(lost, () => lost("")); // no answer at all: it is not there
      else lost("");
      setTimeout(open, wait * 1000 * (0.75 + Math.random() / 2));
      wait = Math.min(LONGEST_S, wait * 2);
    };
  };
  open();
}

/** A browser does not tell a page why its WebSocket was not opened; the monitor does. */
async function whyRefused() {
  const answer = await fetch(EVENTS);
  if (answer.status === 401) location.assign("login");
  return answer.status === 426 ? answer.text() : "";
}

export async function json(address) {
  const answer = await fetch(address);
  if (answer.status === 401) location.assign("login");
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

/** An image with its numbers: value = offset + scale * data[i]; `bin` pixels of the detector are one of these. */
export async function image(address, bin = 1) {
  const answer = await fetch(bin === 1 ? address : `${address}${address.includes("?") ? "&" : "?"}bin=${bin}`);
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  const [height, width] = answer.headers.get("x-shape").split(",").map(Number);
  const [offset, scale] = answer.headers.get("x-range").split(",").map(Number);
  const buffer = await answer.arrayBuffer();
  const data = answer.headers.get("x-dtype") === "<u2" ? new Uint16Array(buffer) : new Float32Array(buffer);
  return { height, width, offset, scale, data, bin };
}
