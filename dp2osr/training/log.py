"""Training curves on disk."""

import json

from dp2osr.files import write_text


class TrainingLog:
    """A JSONL of records; what a killed run wrote beyond its last checkpoint is dropped when it goes on. `records`: those that are kept."""

    def __init__(self, path, step):
        kept, self.records = [], []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # the line that a kill cut
                    continue
                if record["step"] <= step and step:
                    kept.append(line)
                    self.records.append(record)
        write_text(path, "".join(f"{line}\n" for line in kept))
        self.path = path

    def write(self, record):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
