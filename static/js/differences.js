// Which words of one answer another does not have: the longest common run of words, by dynamic programming.
import { make } from "./dom.js";

const WORDS = /\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;
const MOST = 4_000_000; // cells of the table: two answers of 2,000 words, a tenth of a second

/** `[{text, differs}]` of `text`, or null where the two are too long to compare. */
export function compare(reference, text) {
  const ours = words(text);
  const theirs = words(reference);
  const common = shared(theirs, ours);
  return common && merge(ours.map((word, at) => ({ text: word, differs: !common.has(at) && word.trim() !== "" })));
}

/** Marks in each answer what the first does not say; every answer is left as plain text where `on` is false. */
export function mark(answers, on) {
  const [first, ...others] = answers;
  for (const { box, text } of others) {
    const parts = on && first.text && text ? compare(first.text, text) : null;
    const plain = parts ? parts.map((part) => (part.differs ? make("mark", "", part.text) : part.text)) : [text];
    const rest = [...box.children].filter((child) => child.tagName === "P"); // why it failed
    box.replaceChildren(...plain, ...rest);
  }
  first?.box.replaceChildren(first.text, ...[...first.box.children].filter((child) => child.tagName === "P"));
}

const words = (text) => text.match(WORDS) ?? [];

/** The places in `ours` of the words of the longest common run. */
function shared(theirs, ours) {
  let from = 0;
  while (from < theirs.length && from < ours.length && theirs[from] === ours[from]) from += 1;
  let end = 0;
  while (end < theirs.length - from && end < ours.length - from && theirs.at(-1 - end) === ours.at(-1 - end)) end += 1;
  const [rows, columns] = [theirs.length - from - end, ours.length - from - end];
  if (rows * columns > MOST) return null;
  const found = new Set([...ours.keys()].filter((at) => at < from || at >= ours.length - end));
  const wide = columns + 1;
  const longest = new Uint16Array((rows + 1) * wide);
  for (let row = rows - 1; row >= 0; row -= 1) {
    for (let column = columns - 1; column >= 0; column -= 1) {
      const at = row * wide + column;
      longest[at] = theirs[from + row] === ours[from + column] ? longest[at + wide + 1] + 1 : Math.max(longest[at + wide], longest[at + 1]);
    }
  }
  for (let row = 0, column = 0; row < rows && column < columns;) {
    const at = row * wide + column;
    if (theirs[from + row] === ours[from + column]) {
      found.add(from + column);
      row += 1;
      column += 1;
    } else if (longest[at + wide] >= longest[at + 1]) row += 1;
    else column += 1;
  }
  return found;
}

/** Neighbours that differ alike as one; a space between two that differ goes with them. */
function merge(parts) {
  const merged = [];
  parts.forEach((part, at) => {
    const last = merged.at(-1);
    const between = part.text.trim() === "" && last?.differs && parts[at + 1]?.differs;
    const differs = part.differs || Boolean(between);
    if (last && last.differs === differs) last.text += part.text;
    else merged.push({ text: part.text, differs });
  });
  return merged;
}
