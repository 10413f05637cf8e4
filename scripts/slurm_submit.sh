#!/bin/bash
# Two machines of eight GPUs; one process a GPU, which Lightning finds by SLURM's variables.
#
#   sbatch scripts/slurm_submit.sh --config recipes/coco/table3/bot50-jitter-0.1-2.0.yaml
#
# Data and run folder have to be visible to both. For fewer GPUs change --nodes, and --ntasks-per-node with
# --gpus-per-node; global_batch keeps the recipe's batch.
#SBATCH --job-name=botnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=botnet-%j.log

# exec: the signal that announces the end has to reach the processes of srun, not wait for this shell.
exec srun .venv/bin/botnet fit "$@" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --ckpt_path last
