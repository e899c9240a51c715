"""`deploykit sign`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli._command import Answer, Command, examples
from deploykit.cli._show import progress
from deploykit.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.bundle.signature import Signer
    from deploykit.verbs.sign import SignReport

_FILE = click.Path(path_type=Path)


@click.command(
    "sign",
    cls=Command,
    epilog=examples(
        "deploykit sign engines/resnet50-fp16 --key key.pem",
        "deploykit sign engines/resnet50-fp16 --key key.pem --certificate cert.pem --chain ca.pem",
        "deploykit sign engines/resnet50-fp16 --sigstore",
    ),
)
@click.argument("bundle", type=_FILE)
@click.option(
    "--key",
    type=_FILE,
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
    help="Certificate of the key, for signing: those who trust its issuer need not know the key.",
)
@click.option(
    "--chain",
    type=_FILE,
    multiple=True,
    metavar="FILE.pem",
    help="Certificates between this one and a trusted one; may be repeated. Without it those "
    "who verify have to trust the direct issuer.",
)
@click.option(
    "--sigstore",
    is_flag=True,
    help="By your identity: log in with a browser. Needs a network; your name and the signature "
    "are written into Sigstore's public log, for good.",
)
@click.option(
    "--identity-token",
    type=_FILE,
    metavar="FILE",
    help="File with an identity token for --sigstore, where there is no browser: a CI has one.",
)
def command(  # noqa: PLR0913 - one parameter per option
    *,
    bundle: Path,
    key: Path | None,
    password_file: Path | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    sigstore: bool,
    identity_token: Path | None,
) -> Answer:
    """Sign a bundle as it is, with a private key or an identity of your own.

    Every file is compared with its hash first. The signature is the file model.sig in the bundle.
    "deploykit verify" and "deploykit check" compare it with the public key, or with the identity.
    Needs the packages model-signing and pyopenssl.
    """
    of_keys = [password_file, certificate, *chain]
    if (key is not None) == sigstore or (sigstore and any(of_keys)) or (key and identity_token):
        raise UsageError(
            "give either --key, with --password-file, --certificate and --chain as it needs them; "
            "or --sigstore, with --identity-token where there is no browser"
        )
    with progress().step("sign"):
        from deploykit.bundle.keys import SigningKey, read_password
        from deploykit.bundle.sigstore import SigstoreSigner
        from deploykit.verbs.sign import sign

        signer: Signer = SigstoreSigner(identity_token)
        if key is not None:
            password = None if password_file is None else read_password(password_file)
            signer = SigningKey(key, password, certificate, chain)
        report = sign(bundle, signer)
    return Answer(report.to_dict(), lambda out: _show(out, report), verdict=_verdict(report))


def _verdict(report: SignReport) -> str:
    return f"signed {report.bundle} by {report.signed_by}"


def _show(out: Console, report: SignReport) -> None:
    out.print(
        f"{_verdict(report)}: the manifest, which has the hash of {report.files} other files",
        markup=False,
        soft_wrap=True,
    )
    if report.issuers:
        out.print(
            "it verifies where one of these is trusted, by the certificate, or this one itself: "
            f"{'; '.join(map(repr, report.issuers))}",
            markup=False,
            soft_wrap=True,
        )
    out.print(f"wrote {report.signature}", markup=False, soft_wrap=True)
