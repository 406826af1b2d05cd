"""Sheets: many questions over the same one to four passages, which the model reads once for all of them.

An example of `examples.py` costs some 250 tokens, nearly all of them passages, for one answer. A sheet asks up to a dozen questions of its
passages, each on a branch of its own that sees the passages and itself only, so an answer costs a quarter of that. The prompt is the
chain's without the question before the passages, which the branches could not share. Knows questions and tokens; knows no tensors.
"""

from typing import Any

from tools.train_embedded.examples import TECHNICAL, Example, ExampleMaker
from tools.train_embedded.reading import sentences
from utils.rag import ABSTENTION, INSTRUCTION

BESIDE = [0.15, 0.2, 0.25, 0.4]  # shares of 0, 1, 2 and 3 passages beside the first; they bring questions of their own
ANSWERED = 12  # questions of a sheet that its passages answer, at most
CROPPED = 0.3  # share of passages cut to a few sentences: the questions whose answer went with the rest become unanswerable
ABSTAINED = 0.45  # as many that they don't, for each that they do
MAX_BRANCH, MAX_TOKENS = 64, 1400


class Sheets:
    """Draws sheets from the passages of `maker`; the same seed draws the same ones."""

    def __init__(self, maker: ExampleMaker):
        self.maker, self.chance = maker, maker.chance
        asked = [(i, min(len(p.questions), 10)) for i, p in enumerate(maker.passages) if p.source != "text" and p.questions]
        self.anchors, self.weights = [i for i, _ in asked], [w for _, w in asked]

    def draw(self) -> list[Example]:
        """Questions over one list of passages, those that it answers and those that it doesn't in random order; never empty."""
        while True:
            shown = self._shown()
            texts = [self._text(i) for i in shown]
            answered, removed, turned = self._sorted(shown, texts)
            self.chance.shuffle(answered)
            if not (answered := answered[:ANSWERED]):
                continue
            wrong = removed + turned + self._elsewhere(shown, texts)
            self.chance.shuffle(wrong)
            sheet = answered + wrong[: max(1, round(ABSTAINED * len(answered)))]
            self.chance.shuffle(sheet)
            return sheet

    def _shown(self) -> list[int]:
        chance, maker = self.chance, self.maker
        anchor = chance.choice(maker.technical) if chance.random() < TECHNICAL else chance.choices(self.anchors, self.weights)[0]
        shown = [anchor, *chance.sample(list(maker.near[anchor]), min(chance.choices(range(4), BESIDE)[0], len(maker.near[anchor])))]
        chance.shuffle(shown)
        return shown

    def _text(self, index: int) -> str:
        """The passage, or a few sentences of it around an answer."""
        passage = self.maker.passages[index]
        if self.chance.random() >= CROPPED:
            return passage.text
        about = [answer for _, answer in passage.questions if answer in passage.text] or sentences(passage.text)
        return self.maker.crop(passage, self.chance.choice(about), max_words=60)

    def _sorted(self, shown: list[int], texts: list[str]) -> tuple[list[Example], list[Example], list[Example]]:
        """The passages' own questions: answered by `texts`, no longer answered since the crop, and turned so that nothing answers."""
        maker, answered, removed, turned = self.maker, [], [], []
        for at, index in enumerate(shown):
            passage, others = maker.passages[index], " ".join(texts[:at] + texts[at + 1 :])
            for question, answer in passage.questions:
                yes_or_no = answer.lower() in ("yes", "no")
                if yes_or_no and texts[at] == passage.text:
                    answered.append(Example(maker.roughen(question), answer, texts, at))
                if yes_or_no or answer.lower() in others.lower():
                    continue
                if answer not in texts[at]:
                    removed.append(Example(maker.roughen(question), ABSTENTION, texts, None))
                    continue
                answered.append(Example(maker.roughen(question), answer, texts, at))
                elsewhere = maker.passages[maker.near[index][0]].text
                other = maker.turn(question, texts[at], answer, elsewhere) if self.chance.random() < 0.5 else None
                if other and not maker.names_in(other, others, beside=passage.text):
                    turned.append(Example(maker.roughen(other), ABSTENTION, texts, None))
        return answered, removed, turned

    def _elsewhere(self, shown: list[int], texts: list[str]) -> list[Example]:
        """At most one question of a similar passage that is not shown, and whose answer the shown ones don't hold."""
        near = [i for i in self.maker.near[shown[0]] if i not in shown and self.maker.passages[i].questions]
        if not near:
            return []
        question, answer = self.chance.choice(self.maker.passages[self.chance.choice(near)].questions)
        unfit = answer.lower() in ("yes", "no") or answer.lower() in " ".join(texts).lower()
        return [] if unfit else [Example(self.maker.roughen(question), ABSTENTION, texts, None)]


def tokenized_sheet(sheet: list[Example], tokenizer: Any) -> tuple[list[int], list[tuple[list[int], list[int]]]] | None:
    """(shared prompt, [(rest of the prompt, answer), …]) as token ids; None where the passages are too long. Long branches are left out."""
    passages = "\n\n".join(f"[{number}] {text.strip()}" for number, text in enumerate(sheet[0].passages, start=1))
    prompts, answers = [], []
    for example in sheet:
        chat = [{"role": "user", "content": f"{INSTRUCTION}\n\n{passages}\n\nQuestion: {example.question}"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answer = example.answer if example.gold is None else f"{example.answer} [{example.gold + 1}]"
        prompts.append(tokenizer(text, add_special_tokens=False).input_ids)
        answers.append(tokenizer(answer + tokenizer.eos_token, add_special_tokens=False).input_ids)
    shared = next((i for i, column in enumerate(zip(*prompts)) if len(set(column)) > 1), min(map(len, prompts)) - 1)
    branches = [(p[shared:], a) for p, a in zip(prompts, answers) if len(p) - shared + len(a) <= MAX_BRANCH]
    longest = max((len(p) + len(a) for p, a in branches), default=0)
    room = (MAX_TOKENS - shared) // longest if longest else 0
    return (prompts[0][:shared], branches[:room]) if room > 0 else None
