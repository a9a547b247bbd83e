"""Eight host devices, 64-bit numbers, strict promotion, types checked as the library runs."""

import importlib.util
import os
import pathlib

# Most of the suite's time is compilation, which is shorter where less is optimised.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 " + os.environ.get("XLA_FLAGS", "")
)

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

if importlib.util.find_spec("beartype"):
    install_import_hook("momentax", "beartype.beartype")

hypothesis.settings.register_profile("momentax", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("momentax")


@pytest.fixture(autouse=True, scope="module")
def programs_forgotten_in_time():
    """Every compiled program holds some memory maps, of which Linux lets a process have 65,530: then it crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
