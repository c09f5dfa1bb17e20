"""GLUE's files as `download_glue_data.py` writes them, a few rows of every task."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nni_bertnas.config import TaskSettings
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.tasks import TASKS

MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
    "|sentence1|sentence2|label1"
)
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score"
DIAGNOSTIC = "Lexical Semantics|Predicate-Argument Structure|Logic|Knowledge|Domain|Premise|Hypothesis|Label"
# Files as `download_glue_data.py` writes them, with | for a tab: per task its folder, the lines of every file, and the
# rows that must come out of every split: texts, second texts, labels.
GLUE: dict[str, tuple[str, dict[str, list[str]], dict[str, tuple[list[str], list[str] | None, list[float]]]]] = {
    "cola": (
        "CoLA",
        {
            "train.tsv": ["gj04|1||\"Our friends won't buy it.", "gj04|0|*|They drank the pub.", 'ks08|1||He left."'],
            "dev.tsv": ['gj04|0|*|"', "gj04|1||Sailors rode the breeze."],
        },
        {
            "train": (["\"Our friends won't buy it.", "They drank the pub.", 'He left."'], None, [1, 0, 1]),
            "glue_dev": (['"', "Sailors rode the breeze."], None, [0, 1]),
        },
    ),
    "sst2": (
        "SST-2",
        {
            "train.tsv": ["sentence|label", "\"it 's dull |0", "a charming journey |1", 'is "good" |1'],
            "dev.tsv": ["sentence|label", 'so-called " wit " |0', '"fun |1'],
        },
        {
            "train": (["\"it 's dull", "a charming journey", 'is "good"'], None, [0, 1, 1]),
            "glue_dev": (['so-called " wit "', '"fun'], None, [0, 1]),
        },
    ),
    "mrpc": (
        "MRPC",
        {
            "train.tsv": [
                "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String",
                '1|702876|702977|Amrozi called him " the witness " .|" The witness , he said .',
                "0|2108705|2108831|Yucaipa owned it .|Yucaipa bought it in 1995 .",
            ],
            "dev.tsv": ["\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String", '0|1|2|"A .|B .', "1|3|4|C .|D ."],
        },
        {
            "train": (
                ['Amrozi called him " the witness " .', "Yucaipa owned it ."],
                ['" The witness , he said .', "Yucaipa bought it in 1995 ."],
                [1, 0],
            ),
            "glue_dev": (['"A .', "C ."], ["B .", "D ."], [0, 1]),
        },
    ),
    "qqp": (
        "QQP",
        {
            "train.tsv": [
                "id|qid1|qid2|question1|question2|is_duplicate",
                '133273|213221|213222|"How is life?|What is it like?|0',
                "402555|536040|536041|How do I start?|How can I start?|1",
            ],
            "dev.tsv": ["id|qid1|qid2|question1|question2|is_duplicate", "1|2|3|Why?|Why so?|1", '4|5|6|Who?|"Me?|0'],
        },
        {
            "train": (['"How is life?', "How do I start?"], ["What is it like?", "How can I start?"], [0, 1]),
            "glue_dev": (["Why?", "Who?"], ["Why so?", '"Me?'], [1, 0]),
        },
    ),
    "stsb": (
        "STS-B",
        {
            "train.tsv": [
                STSB,
                "0|main-captions|MSRvid|2012test|0001|none|none|A plane takes off.|An air plane takes off.|5.000",
                '1|main-news|headlines|2015|0002|none|none|"A man plays.|A man sings.|0.25',
            ],
            "dev.tsv": [STSB, "0|main-forums|deft|2014|0003|none|none|One.|Two.|3.8", "1|g|f|y|o|s|t|Three.|Four.|0"],
        },
        {
            "train": (["A plane takes off.", '"A man plays.'], ["An air plane takes off.", "A man sings."], [5, 0.25]),
            "glue_dev": (["One.", "Three."], ["Two.", "Four."], [3.8, 0]),
        },
    ),
    "mnli": (
        "MNLI",
        {
            "train.tsv": [
                f"{MNLI}|gold_label",
                "0|31193|31193n|government|( a )|( b )|(ROOT a)|(ROOT b)|Cream skimming.|Product.|neutral|neutral",
                '1|1|1e|telephone|( a )|( b )|(ROOT a)|(ROOT b)|"you know|You lose.|entailment|entailment',
                "2|2|2c|fiction|( a )|( b )|(ROOT a)|(ROOT b)|One.|None.|contradiction|contradiction",
            ],
            "dev_matched.tsv": [
                f"{MNLI}|label2|label3|label4|label5|gold_label",
                "0|6|6e|slate|x|x|x|x|New rights.|Rights.|neutral|entailment|neutral|neutral|entailment|contradiction",
            ],
            "dev_mismatched.tsv": [
                f"{MNLI}|label2|label3|label4|label5|gold_label",
                '0|7|7c|letters|x|x|x|x|Far.|"Near.|neutral|neutral|neutral|neutral|neutral|neutral',
                "1|8|8c|verbatim|x|x|x|x|Full.|Not empty.||||||entailment",
            ],
        },
        {
            "train": (["Cream skimming.", '"you know', "One."], ["Product.", "You lose.", "None."], [1, 0, 2]),
            "glue_dev_matched": (["New rights."], ["Rights."], [2]),
            "glue_dev_mismatched": (["Far.", "Full."], ['"Near.', "Not empty."], [1, 0]),
        },
    ),
    "qnli": (
        "QNLI",
        {
            "train.tsv": [
                "index|question|sentence|label",
                '0|When did it start?|"It started in 1300.|entailment',
                '1|"Who?|Nobody.|not_entailment',
            ],
            "dev.tsv": ["index|question|sentence|label", "0|What?|Rain.|not_entailment", "1|Where?|Here.|entailment"],
        },
        {
            "train": (["When did it start?", '"Who?'], ['"It started in 1300.', "Nobody."], [0, 1]),
            "glue_dev": (["What?", "Where?"], ["Rain.", "Here."], [1, 0]),
        },
    ),
    "rte": (
        "RTE",
        {
            "train.tsv": [
                "index|sentence1|sentence2|label",
                '0|"No weapons found.|Weapons found.|not_entailment',
                "1|A place of sorrow.|Sorrow.|entailment",
            ],
            "dev.tsv": ["index|sentence1|sentence2|label", '0|Dana died.|"Dana|entailment', "1|A.|B.|not_entailment"],
        },
        {
            "train": (['"No weapons found.', "A place of sorrow."], ["Weapons found.", "Sorrow."], [1, 0]),
            "glue_dev": (["Dana died.", "A."], ['"Dana', "B."], [0, 1]),
        },
    ),
    "wnli": (
        "WNLI",
        {
            "train.tsv": [
                "index|sentence1|sentence2|label",
                "0|I stuck a pin through a carrot. It had a hole.|The carrot had a hole.|1",
                '1|"John saw it.|It saw John.|0',
            ],
            "dev.tsv": ["index|sentence1|sentence2|label", "0|The drain is clogged.|The hair is.|0", '1|"C|D|1'],
        },
        {
            "train": (
                ["I stuck a pin through a carrot. It had a hole.", '"John saw it.'],
                ["The carrot had a hole.", "It saw John."],
                [1, 0],
            ),
            "glue_dev": (["The drain is clogged.", '"C'], ["The hair is.", "D"], [0, 1]),
        },
    ),
    "ax": (
        "diagnostic",
        {
            "diagnostic-full.tsv": [
                DIAGNOSTIC,
                '||Negation||Artificial|"The cat sat.|The cat did not sit.|contradiction',
                "Quantifiers|Core args|||News|All sat.|Some sat.|entailment",
                "|||World knowledge|Reddit|Some sat.|All sat.|neutral",
            ]
        },
        {
            "diagnostic": (
                ['"The cat sat.', "All sat.", "Some sat."],
                ["The cat did not sit.", "Some sat.", "All sat."],
                [2, 0, 1],
            )
        },
    ),
}
TRAINED = [name for name in GLUE if name != "ax"]


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line.replace("|", "\t") + "\n" for line in lines).encode())


def write_glue(root: Path, name: str, train: int = 1, dev: int = 1) -> TaskSettings:
    """The task's files of the table, every row of train and dev so many times."""
    folder, files, _ = GLUE[name]
    for file, lines in files.items():
        first = 0 if name == "cola" else 1
        times = train if file == "train.tsv" else dev
        glue = TASKS[name].glue
        assert glue is not None
        columns = list(glue.header or lines[0].lstrip("\ufeff").split("|"))
        again = [line for time in range(times) for line in _renewed(lines[first:], columns, glue.texts, time)]
        write_lines(root / folder / file, lines[:first] + again)
    return TaskSettings(name=name, source="glue", data_dir=str(root))


def _renewed(lines: list[str], columns: list[str], texts: Sequence[str], time: int) -> list[str]:
    """The same rows with other texts."""
    places = [columns.index(name) for name in texts] if time else []
    rows = [line.split("|") for line in lines]
    return ["|".join(f"{cell} {time}" if n in places else cell for n, cell in enumerate(row)) for row in rows]


def counted(*parts: Rows) -> Counter[tuple[Any, ...]]:
    return Counter(row for part in parts for row in zip(part.texts, part.pairs or part.texts, part.labels, strict=True))
