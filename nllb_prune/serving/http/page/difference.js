/** Which words two translations do not have in common. */

const MOST = 4_000_000; // pairs of words that are compared

/** @typedef {{text: string, differs: boolean}} Piece */

/**
 * Cut two texts into pieces that are in both, in order, and pieces that are not.
 * @param {string} first
 * @param {string} second
 * @param {string} tag of the language
 * @returns {{pieces: [Piece[], Piece[]], words: [number, number]}} and how many words of each differ
 */
export function difference(first, second, tag) {
  const sides = [first, second].map((text) => segmented(text, tag));
  const kept = common(...sides.map((segments) => segments.filter((each) => each.word).map((each) => each.text)));
  return {
    pieces: sides.map((segments, side) => pieces(segments, kept[side])),
    words: kept.map((each) => each.filter((shared) => !shared).length),
  };
}

function segmented(text, tag) {
  const segmenter = new Intl.Segmenter(tag, { granularity: "word" });
  return [...segmenter.segment(text)].map((each) => ({ text: each.segment, word: each.isWordLike }));
}

/** Return for the words of both sides whether they are in the longest sequence that is common to both. */
function common(first, second) {
  const shared = [first.map(() => false), second.map(() => false)];
  let start = 0;
  while (start < first.length && first[start] === second[start]) start += 1;
  let end = 0;
  while (end < Math.min(first.length, second.length) - start && first.at(-1 - end) === second.at(-1 - end)) end += 1;
  for (let place = 0; place < start; place += 1) shared[0][place] = shared[1][place] = true;
  for (let place = 1; place <= end; place += 1) shared[0].splice(-place, 1, true), shared[1].splice(-place, 1, true);
  const middle = [first.slice(start, first.length - end), second.slice(start, second.length - end)];
  for (const [one, other] of longestCommon(...middle)) shared[0][start + one] = shared[1][start + other] = true;
  return shared;
}

function longestCommon(first, second) {
  if (first.length * second.length > MOST) return [];
  const width = second.length + 1;
  const lengths = new Uint16Array((first.length + 1) * width); // (words + 1, words + 1) of what is left from there
  for (let one = first.length - 1; one >= 0; one -= 1) {
    for (let other = second.length - 1; other >= 0; other -= 1) {
      const here = one * width + other;
      const without = Math.max(lengths[here + width], lengths[here + 1]);
      lengths[here] = first[one] === second[other] ? lengths[here + width + 1] + 1 : without;
    }
  }
  return traced(first, second, lengths, width);
}

function traced(first, second, lengths, width) {
  const pairs = [];
  let [one, other] = [0, 0];
  while (one < first.length && other < second.length) {
    if (first[one] === second[other]) pairs.push([one++, other++]);
    else if (lengths[(one + 1) * width + other] >= lengths[one * width + other + 1]) one += 1;
    else other += 1;
  }
  return pairs;
}

/** Join neighbours of a kind; what is between two words that differ goes with them. */
function pieces(segments, shared) {
  const found = [];
  let word = 0;
  let between = "";
  for (const segment of segments) {
    if (!segment.word) {
      between += segment.text;
      continue;
    }
    const differs = !shared[word++];
    const last = found.at(-1);
    if (last?.differs === differs && (differs ? !between.includes("\n") : true)) last.text += between + segment.text;
    else {
      if (between) add(found, between, false);
      add(found, segment.text, differs);
    }
    between = "";
  }
  if (between) add(found, between, false);
  return found;
}

function add(found, text, differs) {
  const last = found.at(-1);
  if (last && !last.differs && !differs) last.text += text;
  else found.push({ text, differs });
}
