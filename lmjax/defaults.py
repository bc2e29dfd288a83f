"""Every key of a config, declared once with its default and its unit or consequence. None means "not set".

A key's type is that of its default; choices, ranges and the types of keys that default to None are in lmjax.config.
A run recorded before a key existed is read as if it had the key's default, so a new key leaves old runs valid as long
as its default means what the code did before.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the base config: a 3.3M-parameter byte-level decoder on `classic`, 4M tokens."""
    c = ConfigDict()
    c.plugins = ()  # Python files that register objectives, models, optimizers, schedules, laws, tasks or metrics

    c.model = ConfigDict()
    c.model.family = "decoder"  # a name of lmjax.models.MODELS: decoder, encoder, encoder_decoder, rnn, ..., your own
    c.model.vocab_size = None  # rows of the embedding; None: the tokenizer's ids, rounded up to a multiple of 64
    c.model.d_model = 256  # width of the residual stream
    c.model.num_layers = 4  # blocks (of the decoder stack in an encoder-decoder)
    c.model.encoder_layers = None  # blocks of the encoder stack in an encoder-decoder; None: num_layers
    c.model.num_heads = 4  # query heads
    c.model.num_kv_heads = None  # key/value heads (grouped-query attention); None: num_heads
    c.model.head_dim = None  # width of a head; None: d_model / num_heads
    c.model.mlp_dim = None  # hidden width of the feed-forward layer; None: 4 d_model
    c.model.embedding_dim = None  # width of the token table; None: d_model, else projected to it (ALBERT)
    c.model.embedding_norm = False  # a norm after the embeddings (BERT, BLOOM)
    c.model.embedding_scale = 16.0  # factor on the token's row (initial std 0.02) as it enters the residual stream
    c.model.token_types = None  # rows of a token-type table (BERT); None: no table
    c.model.position = "rotary"  # learned | sinusoidal | rotary | relative (T5) | alibi | none
    c.model.max_len = None  # rows of the learned position table; None: the longest sequence of the data
    c.model.position_offset = 0  # row of position 0 in the learned table (BART and OPT: 2)
    c.model.rotary_base = 10000.0  # longest wavelength of rotary positions is 2 pi base tokens
    c.model.rotary_fraction = 1.0  # share of a head's width that is rotated
    c.model.rotary_scaling = "none"  # none | linear (positions / rotary_factor) | llama3, yarn (long wavelengths only)
    c.model.rotary_factor = 1.0  # by which scaling stretches wavelengths
    c.model.rotary_low_frequency = 1.0  # llama3, yarn: those above rotary_original_len / this are stretched in full
    c.model.rotary_high_frequency = 4.0  # llama3, yarn (32): those below rotary_original_len / this are kept
    c.model.rotary_original_len = None  # llama3, yarn: tokens of the context before scaling
    c.model.relative_buckets = 32  # buckets of T5's relative position bias
    c.model.relative_max_distance = 128  # tokens; all larger distances share the last bucket
    c.model.norm = "layernorm"  # layernorm | rmsnorm
    c.model.norm_position = "pre"  # pre (x + f(norm(x))) | post (norm(x + f(x))) | both (x + norm(f(norm(x))), Gemma 2)
    c.model.norm_epsilon = 1e-5  # added to the variance
    c.model.norm_scale = True  # trainable gains in norms
    c.model.norm_offset = 0.0  # added to trainable gains, which start at 1 less it (Gemma 2: 1)
    c.model.parallel_block = False  # x + attention(norm(x)) + feed_forward(norm(x)) (GPT-NeoX); pre only
    c.model.attention_scale = None  # factor on query times key; None: 1 / sqrt(head_dim). T5: 1
    c.model.qk_norm = False  # a norm on the queries and the keys of each head (Qwen 3); the gains are shared by heads
    c.model.attention_window = None  # self-attention sees keys less than so many tokens away; None: no limit
    c.model.full_attention_every = None  # every so many layers see without the window (Gemma 2: 2); None: no layer
    c.model.attention_softcap = None  # scores become cap tanh(scores / cap) (Gemma 2: 50); None: no cap
    c.model.activation = "gelu"  # gelu (tanh form) | gelu_exact | relu | swiglu | geglu; the last two are gated
    c.model.num_experts = None  # experts of a feed-forward layer (mixture of experts); None: one layer for all tokens
    c.model.experts_per_token = 2  # experts that each token is sent to
    c.model.expert_capacity = 1.25  # slots of an expert over those of an even load, in training; None: for all tokens
    c.model.tie_embeddings = True  # the output projection is the transposed embedding
    c.model.head = "plain"  # plain | transform (dense, activation, norm before it; BERT) | discriminator (1 logit)
    c.model.head_bias = False  # a bias per id on the logits
    c.model.logit_scale = 1.0  # factor on the logits (T5 with tied embeddings: 1 / sqrt(d_model))
    c.model.logit_softcap = None  # logits become cap tanh(logits / cap) (Gemma 2: 30); None: no cap
    c.model.logit_multiplier = None  # factor on the logits by the parametrization, which sets it; None: 1
    c.model.attention_multiplier = None  # factor on the attention scale, likewise
    c.model.branch_multiplier = None  # factor on every residual branch, likewise
    c.model.router_multiplier = None  # factor on the router's logits, likewise
    c.model.use_bias = False  # biases in dense layers and layernorm
    c.model.share_layers = False  # one block's parameters used at every depth (ALBERT)
    c.model.dropout = 0.0  # probability, after embedding, attention and feed-forward
    c.model.ngram_order = 3  # ngram: tokens of the longest n-grams, the predicted one included
    c.model.ngram_min_count = 1  # ngram: rarer n-grams of two or more tokens are left out
    c.model.dtype = "float32"  # compute dtype, float32 | bfloat16; softmax, norms, loss stay float32
    c.model.scan_layers = False  # one compiled block looped over depth (compiles faster, runs slower when shallow)
    c.model.options = ConfigDict()  # those of the family (rnn: cell), declared with their meaning in its file
    c.model.remat = "none"  # none | dots (keep matmul outputs) | full (keep block inputs); layers are then looped

    c.objective = ConfigDict()
    c.objective.name = "causal_lm"  # see the table in docs/objectives.md; yours; "a+b": a in the rows of b
    c.objective.file = None  # Python file that adds an objective of your own to OBJECTIVES; None: built in
    c.objective.options = ConfigDict()  # the objective's own; declared with their meaning in its file

    c.data = ConfigDict()
    c.data.sources = ("classic",)  # classic, en, code, orders, modular:P, tfds:NAME, files:GLOB, ...: docs/training.md
    c.data.weights = (1.0,)  # share of rows drawn from each source
    c.data.text_field = "text"  # field that holds the text in jsonl, parquet and tfds records; of pairs:, both: "en,de"
    c.data.tokenizer = "bytes"  # bytes | bpe (trained on the training documents) | path of a tokenizer.json
    c.data.vocab_size = None  # ids of a BPE tokenizer, special ids included
    c.data.num_sentinels = 32  # sentinel ids reserved after the text vocabulary
    c.data.mode = "concat_and_split"  # that (windows of all text) | consecutive (in order) | pack (documents, isolated)
    c.data.seq_len = 128  # tokens per row of `inputs`
    c.data.encoder_seq_len = None  # tokens per row of `encoder_inputs` in an encoder-decoder; None: seq_len
    c.data.global_batch_size = 16  # rows per optimizer step, over all devices and accumulation steps
    c.data.validation_fraction = 0.02  # share of documents kept for validation, chosen by a hash of their key
    c.data.max_epochs = 1.0  # passes over the training split allowed; more is an error before step 0
    c.data.seed = 0  # order of the rows, corruption, and sampling of synthetic sources

    c.duration = ConfigDict()  # exactly one of the four is set; the others are derived and recorded
    c.duration.tokens = 4_000_000  # source tokens
    c.duration.steps = None  # optimizer steps
    c.duration.epochs = None  # passes over the training split
    c.duration.flops = None  # training FLOPs, exact count

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw | adafactor | lion | muon
    c.optimizer.learning_rate = 2e-3  # peak
    c.optimizer.b1 = 0.9  # decay of the first moment (adamw, lion, muon's Adam part)
    c.optimizer.b2 = 0.99  # decay of the second moment, long as batches are small (adamw, lion, muon's Adam part)
    c.optimizer.epsilon = 1e-8  # added to the root of the second moment (adamw, muon)
    c.optimizer.weight_decay = 0.1  # times learning rate; on matrices and embeddings, not on norms and biases
    c.optimizer.clip_norm = 1.0  # largest global gradient norm; None: no clipping

    c.parametrization = ConfigDict()
    c.parametrization.name = "standard"  # standard | mup | completep (mup in width, and branches divided by depth)
    c.parametrization.base_width = None  # model.d_model at which it equals "standard" (see docs/training.md)
    c.parametrization.base_layers = None  # the same for model.num_layers (completep)
    c.parametrization.base_head_dim = None  # the same for model.head_dim; None: the width of a head is constant
    c.parametrization.decay = "independent"  # weight decay: independent of | coupled to the factors on the rate

    c.init = ConfigDict()
    c.init["from"] = None  # run directory[@step] of the parent, whose newest or given checkpoint the run starts from
    c.init.what = "state"  # state (a branch: goes on from the parent's step) | params (parameters only, from step 0)
    c.init.parent = None  # identity of the parent, filled in: the hash in its run id, @step

    c.schedule = ConfigDict()
    c.schedule.name = "cosine"  # constant | cosine | linear | inverse_sqrt | wsd
    c.schedule.warmup_steps = None  # optimizer steps; None: warmup_fraction of all steps
    c.schedule.warmup_fraction = 0.05  # of all steps
    c.schedule.decay_fraction = 0.2  # of all steps, at the end (wsd)
    c.schedule.decay_shape = "1-sqrt"  # linear | 1-sqrt (wsd)
    c.schedule.final_fraction = 0.1  # of the peak, reached at the last step (cosine, linear, wsd)

    c.train = ConfigDict()
    c.train.seed = 0  # initial parameters and dropout
    c.train.accumulation_steps = 1  # micro-batches per optimizer step: less memory, the same result without dropout
    c.train.load_balancing = 0.01  # factor on the imbalance of experts in the training loss, 1 when balanced
    c.train.z_loss = 0.0  # factor on log(sum(exp(logits)))^2 in the training loss (PaLM: 1e-4)

    c.evaluation = ConfigDict()
    c.evaluation.every_steps = None  # optimizer steps between evaluations; None: only at the end
    c.evaluation.max_tokens = 262_144  # of the validation split, whole documents, always the same; None: all
    c.evaluation.batch_size = 16  # rows; changes speed and memory only
    c.evaluation.seed = 0  # corruption of the validation text

    c.mesh = ConfigDict()  # devices = data x fsdp x context x tensor
    c.mesh.data = -1  # batch rows are split over this axis; -1: what the others leave
    c.mesh.fsdp = 1  # batch rows and parameters are split over this axis
    c.mesh.context = 1  # the tokens of a row are split over this axis, for long rows; it divides their lengths
    c.mesh.tensor = 1  # heads, feed-forward and vocabulary are split over this axis
    c.mesh.rules = (  # logical axis of an array -> mesh axis
        ("batch", ("data", "fsdp")),
        ("time", "context"),
        ("expert_batch", "data"),  # rows on their way to the experts, which the devices of fsdp share
        ("experts", "fsdp"),
        ("embed", "fsdp"),
        ("heads", "tensor"),
        ("mlp", "tensor"),
        ("vocab", "tensor"),
    )
    c.mesh.platform = None  # cpu | gpu | tpu; anything else found is an error. None: take what is there
    c.mesh.deterministic = False  # the same bits in every run of a program on GPUs, a little slower
    c.mesh.attention = "auto"  # auto (a flash kernel where one can run) | plain | cudnn (GPU) | splash (TPU)

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = None  # optimizer steps; None: off
    c.checkpoint.every_seconds = 600.0  # wall time; None: off
    c.checkpoint.keep = 2  # newest ones kept; None: all
    c.checkpoint.per_decade = None  # also this many per factor 10 in steps, evaluated and always kept; None: off
    c.checkpoint.at = ()  # also these optimizer steps, evaluated and always kept

    c.metrics = ConfigDict()
    c.metrics.every_steps = 10  # optimizer steps between lines of metrics.jsonl
    c.metrics.tensorboard = False  # also write TensorBoard event files into the run directory
    c.metrics.wandb = None  # offline | online: also log to Weights & Biases; None: off
    c.metrics.mlflow = None  # local | a tracking URI: also log to MLflow; None: off

    c.launch = ConfigDict()  # what a run needs from a cluster (lmjax sweep --launcher); see docs/launching.md
    c.launch.nodes = 1  # machines per run, joined through jax.distributed
    c.launch.gpus = 0  # per node
    c.launch.tpus = 0  # chips per node
    c.launch.cpus = None  # cores per node; None: 4 per GPU or TPU chip, 1 without
    c.launch.memory = None  # GiB per node; None: the plan's estimate for a run on CPUs, the cluster's default otherwise
    c.launch.time = None  # minutes, after which a run is saved and queued again; None: the partition's limit
    c.launch.partition = None  # Slurm partition
    c.launch.account = None  # Slurm account
    c.launch.image = None  # container image with lmjax (Kubernetes)
    c.launch.volume = None  # CLAIM:/path, a shared volume that holds the run directories (Kubernetes)
    c.launch.extra = ()  # further sbatch options, Kubernetes node selectors KEY=VALUE, or Ray resources NAME=AMOUNT

    c.run = ConfigDict()
    c.run.name = None  # first word of the run id; None: the model family
    c.run.held_out = False  # a held-out run: left out of the fit, predicted before it is trained, then compared
    c.run.learning_rate_rule = "fixed"  # name of the rule that chose learning_rate, for the record
    return c.lock()
