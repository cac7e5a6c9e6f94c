"""The commands themselves: each one a few lines, and what it needs imported only when it runs."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from triptych.errors import TriptychError

DEFAULT_PROMPT = "a red circle on a blue background"
DEFAULT_PICTURE = Path("triptych.png")

app = typer.Typer(
    help="Stable Diffusion in three panels: a text encoder, a diffusion model and a decoder behind one gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


models = typer.Typer(help="Which models there are by name, and what is known of them.", no_args_is_help=True)
app.add_typer(models, name="models")
jobs = typer.Typer(help="Pictures that are ordered now and fetched later.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
keys = typer.Typer(help="Keys of those who may call.", no_args_is_help=True)
app.add_typer(keys, name="keys")


# What the commands that ask for pictures take.
Prompt = Annotated[str, typer.Argument(help="What the picture should show.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What the picture should not show.")]
NumSteps = Annotated[int | None, typer.Option("--num-steps", "--steps", help="Steps of denoising.")]
GuidanceScale = Annotated[float | None, typer.Option(help="How strongly the prompt leads.")]
GuidanceStart = Annotated[float | None, typer.Option(help="From which share of the steps on, 0 to 1.")]
GuidanceEnd = Annotated[float | None, typer.Option(help="Up to which share of the steps, 0 to 1.")]
CacheInterval = Annotated[int | None, typer.Option(help="Compute the whole U-Net at every N-th evaluation only; 1 is always.")]
Seed = Annotated[int | None, typer.Option(help="The same seed makes the same picture.")]
Width = Annotated[int | None, typer.Option(help="Pixels.")]
Height = Annotated[int | None, typer.Option(help="Pixels.")]
NumImages = Annotated[int | None, typer.Option(help="How many; they are written as FILE-0, FILE-1 ...")]
Sampler = Annotated[str | None, typer.Option(help="Which sampler.")]
ModelName = Annotated[str | None, typer.Option(help="Which model.")]
Image = Annotated[Path | None, typer.Option(help="A picture to change.")]
MaskImage = Annotated[Path | None, typer.Option(help="Where to change it: white is painted anew, black is kept.")]
Strength = Annotated[float | None, typer.Option(help="How much of it to change, 0 to 1.")]
NumResamples = Annotated[int | None, typer.Option(help="How often to make each step under a mask.")]
MaskBlur = Annotated[int | None, typer.Option(help="Pixels by which to soften the mask's edges.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut a prompt that is too long.")]
LongPrompt = Annotated[bool, typer.Option("--long-prompt", help="Let the prompt be longer than a context.")]
GatewayUrl = Annotated[str, typer.Option(envvar="TRIPTYCH_URL", help="Where the gateway is.")]
ApiKey = Annotated[str | None, typer.Option(envvar="TRIPTYCH_API_KEY", help="What the gateway demands.")]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, as the gateway tells it.")]


class ServiceName(StrEnum):
    """What `triptych serve` can serve."""

    TEXT_ENCODER = "text_encoder"
    DIFFUSION = "diffusion"
    DECODER = "decoder"
    CENTRAL = "central"
    ALL_IN_ONE = "all_in_one"


class StageEntry(StrEnum):
    """What `triptych swap` can swap."""

    TEXT_ENCODER = "text_encoder"
    DIFFUSION = "diffusion"
    DECODER = "decoder"
    IMAGE_ENCODER = "image_encoder"


class Stage(StrEnum):
    """What `triptych prepare` can prepare, `pull` fetch and `check` load."""

    TEXT_ENCODER = "text_encoder"
    DIFFUSION = "diffusion"
    DECODER = "decoder"


class QuantizableStage(StrEnum):
    """What `triptych quantize` can quantize."""

    DIFFUSION = "diffusion"
    DECODER = "decoder"


def main() -> None:
    """Runs the command that the command line names. Errors are one sentence on stderr and exit code 1."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except TriptychError as error:
        from triptych.cli.console import complain

        complain(error.message, getattr(error, "lines", ()))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM ends a command the way Ctrl-C does: what it started is stopped first."""
    raise KeyboardInterrupt


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"triptych {version('triptych')}")
        raise typer.Exit


@app.callback()
def triptych(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Stable Diffusion in three panels: a text encoder, a diffusion model and a decoder behind one gateway."""


@app.command()
def serve(
    service: Annotated[ServiceName, typer.Argument(help="Which service.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on; TRIPTYCH_HOST or loopback by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; each service has its own by default.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without a token.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True, help="Process id of a parent to end with.")] = None,
) -> None:
    """Run one service in this process, until Ctrl-C or SIGTERM. Its settings are read from the environment."""
    from triptych.cli.processes import end_with_parent
    from triptych.cli.service import run_service

    if parent is not None:
        end_with_parent(parent)
    run_service(service, host=host, port=port, insecure=insecure)


@app.command()
def prepare(stage: Annotated[Stage, typer.Argument(help="Which stage.")]) -> None:
    """Compile a stage's network into the cache folder and end, so that the service starts fast: a step in building an image."""
    from triptych.cli.service import prepare_stage

    prepare_stage(stage)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="The gateway's port; the stages take the next three.")] = 8000,
    model: Annotated[str | None, typer.Option(help="Which model; TRIPTYCH_MODEL or MODEL, else vignette, by default.")] = None,
    topology: Annotated[
        Path | None,
        typer.Option(
            envvar="TRIPTYCH_TOPOLOGY",
            help="The gateway's topology file, written where it does not exist; by default one that is gone afterwards.",
        ),
    ] = None,
) -> None:
    """Start the gateway and the three stages on this machine, and run them until Ctrl-C."""
    from triptych.cli.up import run_until_stopped

    run_until_stopped(port, model, topology)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="A name, a path, or owner/name on the Hub.")],
    stage: Annotated[QuantizableStage | None, typer.Option(help="Whose network; both by default.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Inputs of the U-Net to go by; eight a picture.")] = 128,
    prompts: Annotated[
        Path | None, typer.Option(help="File with one prompt a line; by default a choice that suits the model.")
    ] = None,
) -> None:
    """Have a model's networks in int8, for TRIPTYCH_PRECISION=int8 or TRIPTYCH_PREVIEW_PRECISION=int8, by what they see while
    they make pictures in float."""
    from triptych.cli.quantize import quantize_model

    quantize_model(model, stage=stage, samples=samples, prompts=prompts)


@app.command()
def swap(
    stage: Annotated[StageEntry, typer.Argument(help="Which stage.")],
    to: Annotated[
        list[str] | None, typer.Option(help="Where the new one is, such as http://127.0.0.1:8012; once for each replica.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Whose stage; the default model's by default.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Put back what the last swap replaced.")] = False,
    gateway: Annotated[
        str, typer.Option("--gateway", envvar="TRIPTYCH_URL", help="Where the gateway is.")
    ] = "http://127.0.0.1:8000",
    admin_token: Annotated[str | None, typer.Option(envvar="TRIPTYCH_ADMIN_TOKEN", help="What the gateway demands.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is done.")] = 300.0,
) -> None:
    """Put another stage in a model's place while requests are flowing; it is checked first, and refused with a sentence."""
    from triptych.cli.swap import swap_stage

    swap_stage(
        stage,
        to=to or (),
        rollback=rollback,
        model=model,
        url=gateway,
        admin_token=admin_token,
        timeout_seconds=timeout,
    )


@app.command()
def generate(
    prompt: Prompt,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .png, .jpg, .jpeg or .webp.")] = DEFAULT_PICTURE,
    negative_prompt: NegativePrompt = None,
    num_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    guidance_start: GuidanceStart = None,
    guidance_end: GuidanceEnd = None,
    cache_interval: CacheInterval = None,
    seed: Seed = None,
    width: Width = None,
    height: Height = None,
    num_images: NumImages = None,
    sampler: Sampler = None,
    model: ModelName = None,
    image: Image = None,
    mask: MaskImage = None,
    strength: Strength = None,
    num_resamples: NumResamples = None,
    mask_blur: MaskBlur = None,
    truncate: Truncate = False,
    long_prompt: LongPrompt = False,
    receipt: Annotated[Path | None, typer.Option(help="File to write the receipt to, for `triptych verify`.")] = None,
    url: GatewayUrl = "http://127.0.0.1:8000",
    api_key: ApiKey = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the picture.")] = 600.0,
) -> None:
    """Ask a running gateway for a picture and write it to a file."""
    from triptych.cli.generate import write_pictures

    write_pictures(
        prompt,
        output,
        receipt=receipt,
        url=url,
        api_key=api_key,
        timeout_seconds=timeout,
        negative_prompt=negative_prompt,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        guidance_start=guidance_start,
        guidance_end=guidance_end,
        cache_interval=cache_interval,
        seed=seed,
        width=width,
        height=height,
        num_images=num_images,
        sampler=sampler,
        model=model,
        image=image,
        mask=mask,
        strength=strength,
        num_resamples=num_resamples,
        mask_blur=mask_blur,
        truncate=truncate or None,
        long_prompt=long_prompt or None,
    )


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A PNG that Triptych made.")],
    gateway: Annotated[
        str, typer.Option("--gateway", envvar="TRIPTYCH_URL", help="Where the gateway is.")
    ] = "http://127.0.0.1:8000",
    receipt: Annotated[
        Path | None, typer.Option(help="Its receipt, from `generate --receipt`: tells which stage differs.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="TRIPTYCH_API_KEY", help="What the gateway demands.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the picture.")] = 600.0,
) -> None:
    """Make a picture again from the parameters in its file, and compare: exit code 0 same, 1 different, 2 cannot be said."""
    from triptych.cli.console import complain
    from triptych.cli.verify import is_the_same

    try:
        same = is_the_same(file, url=gateway, api_key=api_key, timeout_seconds=timeout, receipt=receipt)
    except TriptychError as error:
        complain(error.message)
        raise typer.Exit(2) from None
    raise typer.Exit(0 if same else 1)


@app.command()
def demo(
    prompt: Annotated[str, typer.Argument(help="What the picture should show.")] = DEFAULT_PROMPT,
    port: Annotated[int, typer.Option(help="The gateway's port; others are taken where it is not free.")] = 8000,
) -> None:
    """Start the four services, have them make one picture, write it to triptych.png and stop them."""
    from triptych.cli.demo import show

    show(prompt, port, DEFAULT_PICTURE)


@keys.command("new")
def new_key(name: Annotated[str, typer.Argument(help="What logs and queues call its holder.")]) -> None:
    """Draw a key, and show it once with its hash: the entry by which a service knows it."""
    from triptych.cli import keys as command

    command.new_key(name)


@jobs.command("submit")
def submit_job(
    prompt: Prompt,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write with --wait, and the format: .png, .jpg, .jpeg or .webp.")
    ] = DEFAULT_PICTURE,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is completed, and write its pictures.")] = False,
    id_only: Annotated[bool, typer.Option("--id-only", help="Print the job's id and nothing else.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="What you call this job: submitted again it is the same one.")
    ] = None,
    request_priority: Annotated[str | None, typer.Option("--priority", help="low, normal or high.")] = None,
    negative_prompt: NegativePrompt = None,
    num_steps: NumSteps = None,
    guidance_scale: GuidanceScale = None,
    guidance_start: GuidanceStart = None,
    guidance_end: GuidanceEnd = None,
    cache_interval: CacheInterval = None,
    seed: Seed = None,
    width: Width = None,
    height: Height = None,
    num_images: NumImages = None,
    sampler: Sampler = None,
    model: ModelName = None,
    image: Image = None,
    mask: MaskImage = None,
    strength: Strength = None,
    num_resamples: NumResamples = None,
    mask_blur: MaskBlur = None,
    truncate: Truncate = False,
    long_prompt: LongPrompt = False,
    url: GatewayUrl = "http://127.0.0.1:8000",
    api_key: ApiKey = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait with --wait.")] = 600.0,
) -> None:
    """Order pictures as a job, which outlives this command and the gateway."""
    from triptych.cli import jobs as command

    command.submit(
        prompt,
        output,
        wait=wait,
        id_only=id_only,
        idempotency_key=idempotency_key,
        gateway=command.Gateway(url, api_key, timeout),
        request_priority=request_priority,
        negative_prompt=negative_prompt,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        guidance_start=guidance_start,
        guidance_end=guidance_end,
        cache_interval=cache_interval,
        seed=seed,
        width=width,
        height=height,
        num_images=num_images,
        sampler=sampler,
        model=model,
        image=image,
        mask=mask,
        strength=strength,
        num_resamples=num_resamples,
        mask_blur=mask_blur,
        truncate=truncate or None,
        long_prompt=long_prompt or None,
    )


@jobs.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(help="How many.")] = 100,
    as_json: AsJson = False,
    url: GatewayUrl = "http://127.0.0.1:8000",
    api_key: ApiKey = None,
) -> None:
    """List the last jobs of this key, the newest first: id, status, how far it is, when it came."""
    from triptych.cli import jobs as command

    command.list_jobs(command.Gateway(url, api_key), limit=limit, as_json=as_json)


@jobs.command("describe")
def describe_job(job: JobId, as_json: AsJson = False, url: GatewayUrl = "http://127.0.0.1:8000", api_key: ApiKey = None) -> None:
    """Show all that is known of a job."""
    from triptych.cli import jobs as command

    command.describe(job, command.Gateway(url, api_key), as_json=as_json)


@jobs.command("get")
def get_job(
    job: JobId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; the job's id by default. Several are numbered from 0.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is completed.")] = False,
    url: GatewayUrl = "http://127.0.0.1:8000",
    api_key: ApiKey = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait with --wait.")] = 600.0,
) -> None:
    """Write the pictures of a job that is completed: exit code 0, or one sentence and 1."""
    from triptych.cli import jobs as command

    command.get(job, output, command.Gateway(url, api_key, timeout), wait=wait)


@jobs.command("cancel")
def cancel_job(job: JobId, url: GatewayUrl = "http://127.0.0.1:8000", api_key: ApiKey = None) -> None:
    """End a job; remove one that has ended, with its pictures."""
    from triptych.cli import jobs as command

    command.cancel(job, command.Gateway(url, api_key))


@models.command("list")
def list_models() -> None:
    """List the models by name: family, size, licence, and what of each is on this machine."""
    from triptych.cli import models as command

    command.list_models()


@models.command("show")
def show_model(name: Annotated[str, typer.Argument(help="A name, a path, or owner/name on the Hub.")]) -> None:
    """Show all that is known of a model; nothing is downloaded."""
    from triptych.cli import models as command

    command.show_model(name)


@models.command("add")
def add_model(
    name: Annotated[str, typer.Argument(help="What it is to be called.")],
    source: Annotated[
        str, typer.Argument(help="A path, owner/name or owner/name:file.safetensors on the Hub, or keras-cv:sd-v1-4 or sd-v2-1.")
    ],
    family: Annotated[str | None, typer.Option(help="sd-1 or sd-2: whose spaces it has.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of its files, such as fp16.")] = None,
    licence: Annotated[str | None, typer.Option(help="The licence's name.")] = None,
    licence_url: Annotated[str | None, typer.Option(help="Where its text is.")] = None,
    latent_space: Annotated[str | None, typer.Option(help="Name of its latents, where the VAE is its own.")] = None,
    text_space: Annotated[str | None, typer.Option(help="Name of its contexts, where the text encoder is its own.")] = None,
    size: Annotated[str | None, typer.Option(help="Of its pictures, such as 512x512.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Its default sampler.")] = None,
    num_steps: Annotated[int | None, typer.Option("--num-steps", "--steps", help="Its default steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Its default guidance.")] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon, v_prediction or sample, where its files do not say.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of its vocabulary; single files have none.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write an entry anew that is there already.")] = False,
) -> None:
    """Give a model a name of your own, in your models.toml."""
    from triptych.cli import models as command

    command.add_model(
        name,
        source,
        replace=replace,
        family=family,
        revision=revision,
        variant=variant,
        licence=licence,
        licence_url=licence_url,
        latent_space=latent_space,
        text_space=text_space,
        size=size,
        sampler=sampler,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        prediction_type=prediction_type,
        tokenizer=tokenizer,
    )


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of `models list`, or owner/name on the Hub.")],
    stage: Annotated[Stage | None, typer.Option(help="Fetch what this stage needs, and no more.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of the files, such as fp16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    from_folder: Annotated[
        Path | None, typer.Option("--from", help="Folder of the .h5 files that keras-cv downloaded elsewhere.")
    ] = None,
) -> None:
    """Fetch a model, or one stage's part of it, so that services start without downloading."""
    from triptych.cli.pull import pull_model

    pull_model(name, stage=stage, variant=variant, revision=revision, from_folder=from_folder)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A name of `models list`, a path, or owner/name on the Hub.")],
    stage: Annotated[Stage | None, typer.Option(help="Load what this stage needs, and no more.")] = None,
) -> None:
    """Load a model's networks, one after the other, and see whether they fit: exit code 0, or one sentence and 1."""
    from triptych.cli.check import check_model

    check_model(name, stage=stage)


@app.command(context_settings={"ignore_unknown_options": True})
def bench(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Options of the benchmark's own: `triptych bench -- --help` lists them.")
    ] = None,
) -> None:
    """Should you split, and how? Measure where the stages best live, in a checkout of the repository (docs/benchmarks.md)."""
    from triptych.cli.benchmarks import become_benchmark

    become_benchmark("benchmarks.timing", arguments or [])


@app.command()
def advise(
    results: Annotated[Path, typer.Argument(help="Folder of a benchmark's results, or its results.json.")],
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 1.0,
    p95: Annotated[float, typer.Option(help="Seconds that 95 of 100 requests may take at most.")] = 10.0,
    machines: Annotated[Path | None, typer.Option(help="Table of machines; benchmarks/advisor/machines.toml by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the advice as Markdown and JSON, and how cost grows as a plot.")
    ] = None,
) -> None:
    """Should you split, and how? From measured service times to machines and costs, in a checkout of the repository."""
    from triptych.cli.benchmarks import become_benchmark

    options = {"--rate": rate, "--p95": p95, "--machines": machines, "--out": out}
    arguments = [f"{name}={value}" for name, value in options.items() if value is not None]
    become_benchmark("benchmarks.advisor", [*arguments, "--", str(results)])
