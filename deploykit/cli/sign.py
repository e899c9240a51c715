"""`deploykit sign`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.verbs.sign import SignReport

_FILE = click.Path(path_type=Path)


@click.command(
    "sign",
    cls=Command,
    epilog=examples(
        "deploykit sign engines/resnet50-fp16 --key key.pem",
        "deploykit sign engines/resnet50-fp16 --key key.pem --certificate cert.pem --chain ca.pem",
    ),
)
@click.argument("bundle", type=_FILE)
@click.option(
    "--key",
    type=_FILE,
    required=True,
    metavar="FILE.pem",
    help="Private key on the curve P-256, P-384 or P-521, in PEM.",
)
@click.option(
    "--password-file",
    type=_FILE,
    metavar="FILE",
    help="File whose first line is the password of the key, where it is encrypted.",
)
@click.option(
    "--certificate",
    type=_FILE,
    metavar="FILE.pem",
    help="Certificate of the key: those who trust its issuer need not know the key.",
)
@click.option(
    "--chain",
    type=_FILE,
    multiple=True,
    metavar="FILE.pem",
    help="Certificates between this one and a trusted one; may be repeated.",
)
def command(
    bundle: Path,
    key: Path,
    password_file: Path | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
) -> Answer:
    """Sign a bundle as it is, with a private key of your own.

    Every file is compared with its hash first. The signature is the file model.sig in the bundle.
    "deploykit verify" and --trust compare it with the public key. Needs deploykit[sign].
    """
    with progress().step("sign"):
        from deploykit.bundle.signature import SigningKey, read_password
        from deploykit.verbs.sign import sign

        password = None if password_file is None else read_password(password_file)
        report = sign(bundle, SigningKey(key, password, certificate, chain))
    return Answer(report.to_dict(), lambda out: _show(out, report))


def _show(out: Console, report: SignReport) -> None:
    out.print(
        f"signed {report.bundle} by {report.signed_by}: the manifest, which has the hash of "
        f"{report.files} other files",
        markup=False,
        soft_wrap=True,
    )
    out.print(f"wrote {report.signature}", markup=False, soft_wrap=True)
