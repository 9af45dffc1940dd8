/** Server-sent events of an answer that is read as it comes. */

/**
 * @typedef {{name: string, data: any}} ServerEvent
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* serverEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r\n\r\n|\n\n|\r\r/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event) yield event;
    }
  }
}

/** Return the event of some lines; nothing for a comment, which only keeps the connection open. */
function parsed(block) {
  const lines = block.split(/\r\n|\n|\r/).map((line) => /^([^:]+):? ?(.*)$/.exec(line)).filter(Boolean);
  const values = (name) => lines.filter((line) => line[1] === name).map((line) => line[2]);
  const data = values("data");
  return data.length ? { name: values("event").at(-1) ?? "message", data: JSON.parse(data.join("\n")) } : null;
}
