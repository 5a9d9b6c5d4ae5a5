#!/bin/bash
#SBATCH --job-name=ramp-up-17
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# One torchrun on each node, which starts a process for each of its GPUs; the first node is where they meet. Checkout,
# data and --out must lie in a folder that all nodes share. A job that Slurm puts back keeps its number, by which the
# program knows its checkpoint; to go on in a new job: sbatch ex17_ddp_openwebtext/slurm.sh --resume.
cd "$SLURM_SUBMIT_DIR" || exit 1
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # see common/distributed.py
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$address:29500" --rdzv-id "$SLURM_JOB_ID" \
    ex17_ddp_openwebtext/train.py --whole "$@"
