"""`bertnas predict`: predictions of a saved model."""

from argparse import Namespace

from nni_bertnas.deploy.glue_submission import missing_of_submission, write_submission
from nni_bertnas.deploy.predict import load_predictor, predict_file
from nni_bertnas.errors import ConfigError


def run(arguments: Namespace) -> None:
    """Predict a file of rows, or GLUE's test rows."""
    source, target = arguments.file, arguments.glue_submission
    if target is not None and (arguments.output or arguments.columns or arguments.quotes):
        raise ConfigError("--glue-submission takes no --output, --columns or --quotes, as GLUE's files are known")
    predictor = load_predictor(arguments.model)
    if target is not None:
        counts = write_submission(predictor, source, target)
        missing = missing_of_submission(target)
        wanting = f"; still missing: {', '.join(missing)}" if missing else "; it is complete"
    else:
        target, wanting = arguments.output or source.with_name(f"{source.stem}.predictions.csv"), ""
        literal = arguments.quotes == "literal"
        counts = predict_file(predictor, source, target, columns=arguments.columns, literal_quotes=literal)
    print(f"{target}: {', '.join(f'{name} {count:,}' for name, count in counts.items())}{wanting}")
