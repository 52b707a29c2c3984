// Which words of a text another text does not have at that place: what a longest common subsequence leaves out.

const MOST_CELLS = 4_000_000; // of the table, which takes 2 bytes each; longer texts are not marked
const PIECES = /\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;

/** The text in runs `{text, differs}`, which joined are the text. */
export function differing(text, reference) {
  const pieces = text.match(PIECES) ?? [];
  const words = pieces.filter(isWord);
  const others = (reference.match(PIECES) ?? []).filter(isWord);
  if (words.length * others.length > MOST_CELLS) return [{ text, differs: false }];
  const isCommon = commonWords(words, others);
  let index = 0;
  return runs(pieces.map((piece) => ({ text: piece, differs: isWord(piece) && !isCommon[index++] })));
}

const isWord = (piece) => piece.trim() !== "";

function commonWords(words, others) {
  const width = others.length + 1;
  const lengths = new Uint16Array((words.length + 1) * width); // of what is left of both
  for (let i = words.length - 1; i >= 0; i--) {
    for (let j = others.length - 1; j >= 0; j--) {
      lengths[i * width + j] =
        words[i] === others[j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const isCommon = words.map(() => false);
  for (let i = 0, j = 0; i < words.length && j < others.length; ) {
    if (words[i] === others[j]) {
      isCommon[i++] = true;
      j++;
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
    else j++;
  }
  return isCommon;
}

function runs(pieces) {
  const joined = [];
  for (const piece of pieces) {
    const last = joined.at(-1);
    if (last?.differs === piece.differs) last.text += piece.text;
    else joined.push({ ...piece });
  }
  return joined;
}
