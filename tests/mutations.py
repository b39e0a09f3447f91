"""Switches mechanisms off, one at a time, and expects the test that guards each to fail: ``python -m tests.mutations``.

Works on a copy of the project. Exit code 1 when a test did not notice, or fails with its mechanism on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
#: Large and never changed: linked, not copied.
LINKED = ("models", "docs")


@dataclass(frozen=True, slots=True)
class Mutation:
    """``mechanism`` is text that is in ``file`` once; ``off`` takes its place."""

    what: str
    file: str
    mechanism: str
    off: str
    test: str


MUTATIONS = (
    Mutation(
        "every controller may publish",
        "load_balancer/lease.py",
        'if self._holder not in ("", holder) and now < self._until:',
        "if False:",
        "tests/load_balancer/test_lease.py::test_another_controller_takes_over_when_the_lease_has_expired",
    ),
    Mutation(
        "a judge that answers NaN passes images",
        "weir/cascade.py",
        "if confidence is not None and not 0 <= confidence <= 1:",
        "if False:",
        "tests/weir/test_cascade.py::test_a_value_that_is_no_confidence_defers_and_never_accepts",
    ),
    Mutation(
        "a worker resumes from states of other adapters",
        "workers/models/lora/adapter_store.py",
        'return model + "".join(f"+{adapter.id}*{scale:g}" for adapter, scale in adapters)',
        "return model",
        "tests/workers/models/lora/test_adapter_store.py::"
        "test_a_state_of_other_adapters_or_scales_is_never_resumed_from",
    ),
    Mutation(
        "the cache looks up states of other adapters",
        "cache/policy/partition.py",
        "for use in settings.adapters)",
        "for use in ())",
        "tests/cache/test_tenants.py::test_states_of_other_adapters_or_scales_are_never_read_and_those_without_stay",
    ),
    Mutation(
        "every row of a call has the adapters of the first",
        "workers/models/lora/low_rank.py",
        "self.are_same = all(it == self._by_row[0] for it in self._by_row)",
        "self.are_same = True",
        "tests/workers/models/lora/test_equality.py::test_images_of_different_adapters_share_a_call_and_are_as_alone",
    ),
    Mutation(
        "a picture of any number of pixels is decoded",
        "load_balancer/http/edit_pictures.py",
        "if opened.width * opened.height > most_pixels:",
        "if False:",
        "tests/load_balancer/http/test_edits.py::test_a_broken_picture_is_refused_by_its_name_before_any_work",
    ),
    Mutation(
        "what a mask keeps of a picture is what the VAE makes of it",
        "workers/engine/image_decoder.py",
        "images[row] = sample.unchanged.in_image(images[row])",
        "pass",
        "tests/workers/models/test_edits.py::test_an_edit_with_a_mask_is_that_of_diffusers",
    ),
    Mutation(
        "an edit with a mask shares calls with images that the inpainting UNet does not generate",
        "workers/models/family.py",
        "return self._model_key(job), job.recipe.size",
        "return job.recipe.variant, job.recipe.size",
        "tests/workers/models/test_inpainting.py::test_calls_of_the_two_unets_are_kept_apart",
    ),
    Mutation(
        "the rate of a key counts images of any size as one",
        "load_balancer/runner/balancer.py",
        "return request.n * max(1.0, whole * max(1.0, steps / own))",
        "return float(request.n)",
        "tests/load_balancer/runner/test_balancer.py::test_larger_images_and_more_steps_have_the_price_of_their_work",
    ),
    Mutation(
        "a request for more images than the limit is refused for good",
        "load_balancer/admission/admission.py",
        "if self.in_flight and self.in_flight",
        "if self.in_flight",
        "tests/load_balancer/admission/test_admission.py::"
        "test_a_request_for_more_images_than_the_limit_is_admitted_by_an_idle_service",
    ),
    Mutation(
        "a lookup whose client has left pins its states",
        "cache/cache.py",
        "if name not in self._ended_early:",
        "if True:",
        "tests/cache/test_service.py::test_an_end_that_overtakes_its_lookup_leaves_no_state_pinned",
    ),
    Mutation(
        "a prompt is a formula to a spreadsheet",
        "traces/outcome.py",
        """return f"'{text}" if text.startswith(_FORMULAS) else text""",
        "return text",
        "tests/traces/test_replay.py::test_no_cell_is_a_formula_to_a_spreadsheet_and_every_text_is_read_as_it_was",
    ),
    Mutation(
        "a report shows pictures from outside of its folder",
        "traces/outcome.py",
        'if path.is_absolute() or ".." in path.parts:',
        "if False:",
        "tests/traces/test_replay.py::test_a_file_of_outcomes_names_no_image_outside_of_its_folder",
    ),
    Mutation(
        "every record that a full disk loses is a traceback",
        "weir/logs.py",
        "if not isinstance(error, OSError):",
        "if True:",
        "tests/weir/test_logs.py::test_while_the_disk_is_full_records_are_lost_which_is_said_once",
    ),
    Mutation(
        "the search for replicas may wait for ever",
        "load_balancer/pool/serve_pool.py",
        "async with asyncio.timeout(DESCRIBE_TIMEOUT_S):",
        "if True:",
        "tests/load_balancer/pool/test_replica_registry.py::test_a_router_that_hangs_holds_no_probe_up",
    ),
    Mutation(
        "a low priority is a deadline that never comes",
        "workers/engine/scheduling.py",
        "urgent = sorted(tasks, key=lambda t: (t.deadline < now + t.left * step_s(t), t.deadline, t.ticket))",
        "urgent = sorted(tasks, key=lambda t: (t.deadline < now + t.left * step_s(t), -t.ticket))",
        "tests/workers/engine/test_scheduling.py::"
        "test_an_image_of_low_priority_is_in_time_although_others_keep_the_device_busy",
    ),
    Mutation(
        "a light image is the answer when the heavy one is blocked",
        "weir/cascade.py",
        "case Reason.BLOCKED:",
        "case Reason.BLOCKED if False:",
        "tests/weir/test_cascade.py::test_a_blocked_image_ends_the_request_although_there_is_another_image",
    ),
    Mutation(
        "unfinished images are shown where finished ones are checked",
        "load_balancer/runner/balancer.py",
        "previews=0 if checked else request.partial_images,",
        "previews=request.partial_images,",
        "tests/load_balancer/http/test_moderation.py::"
        "test_unfinished_images_are_not_shown_where_finished_ones_are_checked",
    ),
    Mutation(
        "devices are taken by whoever asks for most",
        "load_balancer/admission/tenant_shares.py",
        "return work[tenant] * len(work) > TOLERANCE * sum(work.values())",
        "return False",
        "tests/load_balancer/admission/test_tenant_shares.py::test_workers_take_images_beyond_the_share_after_all_others",
    ),
    Mutation(
        "images beyond a tenant's share make other tenants' batches longer",
        "workers/engine/scheduling.py",
        "(not self.low_priority or first.low_priority or self.tenant == first.tenant)",
        "True",
        "tests/workers/engine/test_scheduling.py::test_an_image_of_low_priority_slows_no_image_of_another_tenant",
    ),
    Mutation(
        "a single image moves the threshold to its ends",
        "controller/policies/weir.py",
        "PAYBACK_IMAGES = 10",
        "PAYBACK_IMAGES = 1",
        "tests/controller/test_policies.py::test_the_threshold_of_weir_does_not_follow_the_chance_of_single_images",
    ),
    Mutation(
        "deadlines, quotas and lifetimes follow the wall clock",
        "weir/clocks.py",
        "monotonic: Callable[[], float] = time.monotonic",
        "monotonic: Callable[[], float] = time.time",
        "tests/weir/test_clocks.py::test_the_wall_clock_is_read_for_people_and_other_hosts_only",
    ),
    Mutation(
        "hosts compare the times of their clocks",
        "weir/core.py",
        '"deadline": now + float(fields.pop("left_s")),',
        '"deadline": float(fields.pop("left_s")),',
        "tests/weir/test_core.py::test_a_host_with_another_clock_has_the_same_time_left",
    ),
    Mutation(
        "an edited quota makes another request of a repeated one",
        "load_balancer/runner/generation_request.py",
        "caller: Caller = field(default=ANONYMOUS, compare=False)",
        "caller: Caller = ANONYMOUS",
        "tests/load_balancer/http/test_jobs.py::test_a_key_whose_quota_was_edited_meanwhile_repeats_its_request",
    ),
    Mutation(
        "a complaint quotes what stands under an unknown key",
        "weir/config.py",
        '_UNQUOTED = frozenset(("missing", "extra_forbidden", "model_type", "model_attributes_type", "dict_type"))',
        '_UNQUOTED = frozenset(("missing",))',
        "tests/weir/test_secrecy.py::test_no_complaint_about_a_file_quotes_a_secret_that_is_in_it",
    ),
    Mutation(
        "the logged configuration has the password of Redis",
        "weir/secrecy.py",
        "if value is not None and key in MAY_HOLD_SECRETS:",
        "if False:",
        "tests/weir/test_secrecy.py::test_the_logged_configuration_has_no_secret_in_whatever_form_it_is_given",
    ),
    Mutation(
        "a plan whose version is a mistake takes over",
        "weir/plan.py",
        "return 0 < self.version - version <= MOST_AHEAD",
        "return version < self.version",
        "tests/load_balancer/runner/test_balancer.py::test_a_wrong_or_older_plan_changes_nothing",
    ),
    Mutation(
        "a wrong plan that was deployed keeps the next one from being deployed",
        "deploy/serve_config.py",
        "return version if is_version(version) and version - plan.version <= MOST_AHEAD else 0",
        "return version",
        "tests/deploy/test_serve_config.py::"
        "test_a_plan_that_no_replica_follows_does_not_keep_the_next_one_from_being_deployed",
    ),
    Mutation(
        "clients control Ray Serve by headers",
        "load_balancer/http/front_door.py",
        'headers = [(name, value) for name, value in scope["headers"] if _allowed(_plain(name), value)]',
        'headers = scope["headers"]',
        "tests/load_balancer/http/test_front_door.py::test_headers_that_control_ray_serve_do_not_reach_it",
    ),
    Mutation(
        "Ray Serve's own paths are open",
        "load_balancer/http/front_door.py",
        'if not path.startswith("/") or (path.startswith(OWN) and path != HEALTH):',
        "if False:",
        "tests/load_balancer/http/test_front_door.py::test_ray_serves_own_paths_are_closed",
    ),
    Mutation(
        "a head may be of any size",
        "load_balancer/http/connection.py",
        "if self._pending_bytes > MOST_HEAD_BYTES:",
        "if False:",
        "tests/load_balancer/http/test_front_door.py::test_trailers_without_end_end_the_connection",
    ),
    Mutation(
        "any number of connections may be quiet",
        "load_balancer/http/connection.py",
        "if len(self._quiet) > MOST_QUIET:",
        "if False:",
        "tests/load_balancer/http/test_front_door.py::"
        "test_of_too_many_quiet_connections_the_oldest_is_closed_and_requests_go_on",
    ),
    Mutation(
        "Ray's files may be anywhere",
        "deploy/cluster.py",
        "if not is_private(folder):",
        "if False:",
        "tests/deploy/test_cluster.py::test_ray_gets_no_folder_that_other_users_can_reach",
    ),
    Mutation(
        "a token that others can read stays as it is",
        "deploy/cluster.py",
        "            keep_private(token)\n",
        "            pass\n",
        "tests/deploy/test_cluster.py::test_rays_token_stays_in_a_home_folder_that_can_be_written",
    ),
    Mutation(
        "the oldest leaves, whose ever it is",
        "load_balancer/http/fair_room.py",
        "largest = max(self._parts.values(), key=self._share)",
        "largest = next(iter(self._parts.values()))",
        "tests/load_balancer/http/test_fair_room.py::"
        "test_the_room_is_bounded_and_a_tenant_below_its_share_keeps_everything",
    ),
    Mutation(
        "a key is forgotten with its answer",
        "load_balancer/http/jobs.py",
        "if job.key is not None and job.error is None and job.ended is not None:",
        "if False:",
        "tests/load_balancer/http/test_jobs.py::test_a_key_outlives_its_answer",
    ),
    Mutation(
        "polls are free",
        "load_balancer/http/generations.py",
        "        self._charged(caller, _repeated(job, answer))\n",
        "",
        "tests/load_balancer/http/test_streaming.py::test_replays_and_polls_cost_their_caller_and_nobody_else",
    ),
    Mutation(
        "every listener has a stream encoded anew",
        "load_balancer/http/events.py",
        "if job.stream is None:",
        "if True:",
        "tests/load_balancer/http/test_streaming.py::test_a_stream_is_encoded_once_for_all_its_listeners",
    ),
    Mutation(
        "who comes first gets all turns to encode",
        "load_balancer/http/fair_turns.py",
        "caller = min(able, key=lambda it: self._running[it])",
        "caller = able[-1]",
        "tests/load_balancer/http/test_fair_turns.py::"
        "test_a_caller_with_many_waiting_delays_another_by_one_turn_at_most",
    ),
    Mutation(
        "a plan takes the rest of the configuration down",
        "deploy/serve_config.py",
        'kept = ("proxy_location", "http_options", "grpc_options", "target_capacity")',
        "kept = ()",
        "tests/deploy/test_serve_config.py::test_a_plan_leaves_the_rest_of_the_deployed_configuration_unchanged",
    ),
    Mutation(
        "what a killed service has left is found only by its command",
        "deploy/supervisor.py",
        "return any(Path(path).is_relative_to(scratch) for path in paths)",
        "return False",
        "tests/deploy/test_local.py::test_the_redis_of_a_killed_service_and_what_writes_its_logs_are_ended_by_down",
    ),
    Mutation(
        "spans quote the messages of errors",
        "weir/otlp.py",
        "self.fail(code_of(error))",
        "self.fail(str(error))",
        "tests/weir/test_tracing.py::test_a_failed_span_names_the_error_and_never_quotes_its_message",
    ),
    Mutation(
        "doubted images are generated again whether or not there is time",
        "weir/cascade.py",
        "if _in_time(task, again, forecast):",
        "if True:",
        "tests/weir/test_cascade.py::test_there_has_to_be_time_for_another_one",
    ),
    Mutation(
        "resumed images are the answer whatever the discriminator says",
        "weir/cascade.py",
        "if resumed and resume is not None and (image.confidence or 0.0) < resume.min_confidence:",
        "if False:",
        "tests/load_balancer/runner/test_cache_lookup.py::"
        "test_a_doubted_resumed_image_is_generated_again_and_the_better_judged_is_the_answer",
    ),
    Mutation(
        "the tags of cached states are not checked",
        "cache/store/seal.py",
        "if not hmac.compare_digest(tag, _tag(key, head, packed, secret)):",
        "if False:",
        "tests/cache/test_tenants.py::test_another_tenants_state_moved_under_ones_own_key_is_refused",
    ),
    Mutation(
        "all tenants share their states",
        "cache/policy/partition.py",
        'return quote(tenant, safe="") + "|"',
        'return "everybody|"',
        "tests/cache/test_faults.py::test_tenants_never_meet",
    ),
    Mutation(
        "an unknown key is anybody's",
        "load_balancer/http/api_keys.py",
        "        if found is None:\n",
        "        found = found or self._anonymous\n        if found is None:\n",
        "tests/load_balancer/http/test_auth.py::test_without_a_known_key_every_route_is_refused_and_names_the_command_to_create_one",
    ),
    Mutation(
        "a key may have any number of images in flight",
        "load_balancer/admission/quotas.py",
        "if most is not None and use.in_flight + images > most:",
        "if False:",
        "tests/load_balancer/admission/test_quotas.py::test_no_key_exceeds_its_quota",
    ),
    Mutation(
        "admission does not look at the deadline",
        "load_balancer/admission/admission.py",
        "if finish_at > deadline:",
        "if False:",
        "tests/load_balancer/runner/test_balancer.py::test_more_than_the_deadline_allows_is_refused_before_any_work",
    ),
    Mutation(
        "a light image does not stand in for a heavy one that fails",
        "weir/cascade.py",
        "if progress.images and task.plan.rules.light_fallback:",
        "if False:",
        "tests/load_balancer/runner/test_balancer.py::test_a_heavy_image_that_fails_leaves_the_light_one",
    ),
    Mutation(
        "a replica that does not answer still gets images",
        "load_balancer/dispatch/failure_detector.py",
        "if 0 < it.missed < MISSED_PROBES:",
        "if 0 < it.missed:",
        "tests/load_balancer/pool/test_replica_registry.py::test_a_replica_that_missed_some_probes_gets_no_images_and_the_others_stay",
    ),
    Mutation(
        "a replica that froze is never killed",
        "load_balancer/dispatch/failure_detector.py",
        "if now - it.since >= self._end_s and not it.ended:",
        "if False:",
        "tests/load_balancer/pool/test_replica_registry.py::test_a_replica_that_is_silent_for_longer_than_a_drain_is_killed_once",
    ),
    Mutation(
        "images wait for a hung replica for ever",
        "load_balancer/pool/answer_waits.py",
        "if not wait.expired():",
        "if False:",
        "tests/load_balancer/pool/test_replica_registry.py::test_images_at_a_hung_replica_are_generated_by_another",
    ),
    Mutation(
        "an image is generated at one replica and at no other",
        "weir/cascade.py",
        "ATTEMPTS = 2",
        "ATTEMPTS = 1",
        "tests/load_balancer/runner/test_balancer.py::test_a_request_whose_replica_died_is_sent_once_more_elsewhere",
    ),
    Mutation(
        "the seed does not follow from the idempotency key",
        "load_balancer/http/generations.py",
        "seed = seed_of(caller, key) if key is not None and body.seed is None else body.seed",
        "seed = body.seed",
        "tests/load_balancer/http/test_jobs.py::test_after_a_crash_the_same_key_has_the_same_seed",
    ),
    Mutation(
        "a known idempotency key is a new request",
        "load_balancer/http/jobs.py",
        "if key is not None and (known :=",
        "if False and (known :=",
        "tests/load_balancer/http/test_jobs.py::test_concurrent_requests_with_one_key_are_generated_once",
    ),
    Mutation(
        "a cancelled image is generated to its end",
        "workers/engine/step_loop.py",
        "        task.cancelled = True\n",
        "        pass\n",
        "tests/workers/engine/test_step_loop.py::test_a_cancelled_image_leaves_before_the_next_step_without_an_answer",
    ),
    Mutation(
        "a refusal does not say when to come again",
        "load_balancer/http/responses.py",
        'response.headers["Retry-After"] = ',
        "_ = ",
        "tests/load_balancer/http/test_api.py::test_every_refusal_has_retry_after",
    ),
    Mutation(
        "somebody unpickles a state",
        "weir/states.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport pickle\n",
        "tests/weir/test_gadget.py::test_no_file_of_the_project_can_unpickle_data",
    ),
    Mutation(
        "a state does not say which encoder found it",
        "cache/policy/partition.py",
        "            self._encoder,\n",
        "",
        "tests/cache/test_tenants.py::test_states_of_another_model_or_encoder_are_never_read",
    ),
    Mutation(
        "all tenants share the encodings of prompts",
        "workers/models/family.py",
        "prompts = [(it.tenant, parsed(it.prompt, it.prompt_syntax)) for it in requests]",
        'prompts = [("", parsed(it.prompt, it.prompt_syntax)) for it in requests]',
        "tests/workers/models/test_family.py::test_a_prompt_is_encoded_again_for_another_tenant",
    ),
    Mutation(
        "the secrets of before open nothing",
        "cache/store/store.py",
        "for secret in self._retired:",
        "for secret in ():",
        "tests/cache/test_tenants.py::"
        "test_while_a_secret_is_replaced_the_old_one_still_opens_and_only_the_new_one_seals",
    ),
    Mutation(
        "the circuit breaker never opens",
        "cache/store/breaker.py",
        "if self._failed >= self._most:",
        "if False:",
        "tests/cache/test_faults.py::test_a_slow_server_costs_the_time_limit_and_then_nothing",
    ),
    Mutation(
        "under overload the oldest prompts are encoded first",
        "cache/lookup_batcher.py",
        "self._waiting, batch = waiting[:-size], waiting[-size:]",
        "self._waiting, batch = waiting[size:], waiting[:size]",
        "tests/cache/test_lookup_batcher.py::"
        "test_under_overload_the_latest_come_first_and_who_waited_too_long_is_not_encoded",
    ),
    Mutation(
        "vectors of any encoder are searched for",
        "cache/service.py",
        "if encoder != self._encoder:",
        "if False:",
        "tests/cache/test_service.py::test_vectors_of_another_encoder_are_refused",
    ),
    Mutation(
        "what leaves the cache stays in Redis",
        "cache/cache.py",
        "self._to_delete += gone",
        "pass",
        "tests/cache/test_faults.py::test_the_cache_keeps_its_budget_and_the_store_has_nothing_else",
    ),
    Mutation(
        "an older plan is as good as a newer one",
        "load_balancer/pool/replica_registry.py",
        "if not plan.replaces(self.plan.version):",
        "if False:",
        "tests/load_balancer/runner/test_balancer.py::test_a_wrong_or_older_plan_changes_nothing",
    ),
    Mutation(
        "a body may be of any length",
        "load_balancer/http/body.py",
        "if received > most_bytes:",
        "if received > 2**20:",
        "tests/load_balancer/http/test_api.py::test_a_large_body_is_refused_without_being_read",
    ),
    Mutation(
        "every caller is an administrator",
        "load_balancer/http/jobs.py",
        "if job is None and caller.admin:",
        "if job is None:",
        "tests/load_balancer/http/test_jobs.py::test_only_its_caller_and_an_administrator_find_a_request",
    ),
    Mutation(
        "every key may change the service",
        "load_balancer/http/admin.py",
        "if not _caller(request).admin:",
        "if False:",
        "tests/load_balancer/http/test_admin.py::test_a_key_without_the_scope_admin_is_refused_and_nothing_changes",
    ),
    Mutation(
        "a drained replica goes on getting images",
        "load_balancer/pool/draining.py",
        'return [it for it in described if it["replica"] not in drained]',
        "return list(described)",
        "tests/load_balancer/pool/test_draining.py::test_a_drained_replica_finishes_what_it_has_and_gets_nothing_new",
    ),
    Mutation(
        "a pin holds for ever",
        "load_balancer/pin_control.py",
        "return now >= self.ends_at",
        "return False",
        "tests/load_balancer/test_admin_controls.py::test_a_pin_ends_by_the_monotonic_clock_whatever_the_wall_clock_says",
    ),
    Mutation(
        "the search for a key stops where it is found",
        "load_balancer/http/api_keys.py",
        "                found = caller\n",
        "                found = caller\n                break\n",
        "tests/load_balancer/http/test_api_keys.py::test_every_known_digest_is_compared_in_constant_time",
    ),
    Mutation(
        "images wait at a replica that gave up their role",
        "workers/replica.py",
        "                self._return_queued(before)\n",
        "                pass\n",
        "tests/workers/test_replica.py::test_queued_requests_are_returned_when_the_role_changes",
    ),
    Mutation(
        "a replica that fails its self-test stays ready",
        "workers/replica.py",
        "                self.ready = False\n",
        "",
        "tests/workers/test_replica.py::"
        "test_a_replica_that_fails_its_self_test_is_not_ready_and_fails_the_health_check",
    ),
    Mutation(
        "what a broken replica fails at is not generated elsewhere",
        "weir/cascade.py",
        "case Reason.LOST | Reason.FAILED | Reason.NOT_FINITE:",
        "case Reason.LOST:",
        "tests/load_balancer/runner/test_balancer.py::test_an_image_that_fails_on_a_replica_is_generated_by_another",
    ),
    Mutation(
        "a call may be without progress for ever",
        "workers/replica.py",
        "if still_s > self.stall_s:",
        "if False:",
        "tests/workers/test_replica.py::test_a_batch_without_progress_fails_the_health_check",
    ),
    Mutation(
        "a light image that is not finite is an error",
        "weir/cascade.py",
        "case Reason.NOT_FINITE if (following := _variant_after(progress, run)) is not None:",
        "case Reason.NOT_FINITE if (following := None) is not None:",
        "tests/weir/test_cascade.py::test_an_image_that_is_not_finite_is_deferred_whatever_the_threshold_is",
    ),
    Mutation(
        "a replica starts whose images are not finite",
        "workers/models/family.py",
        "                    raise unusable(",
        "                    unusable(",
        "tests/workers/models/test_family.py::"
        "test_the_warm_up_names_the_variant_and_the_weights_whose_images_are_not_finite",
    ),
    Mutation(
        "no answer says that its prompt was cut",
        "workers/models/architectures/prompt_windows.py",
        "return windows, len(tokens)",
        "return windows, 0",
        "tests/workers/models/test_architectures.py::test_the_tokens_that_do_not_fit_the_windows_are_counted",
    ),
    Mutation(
        "a soak calls nothing growing",
        "testing/trend.py",
        "growing=growth > most and float(low) > 0",
        "growing=False",
        "tests/benchmarks/test_trend.py::test_a_leak_is_detected_in_noise",
    ),
    Mutation(
        "the noise does not follow from the seed",
        "workers/models/family.py",
        "generator(request.seed)",
        "generator(id(job) % 2**32)",
        "tests/workers/models/test_family.py::test_the_same_request_gives_the_same_bytes_and_another_seed_another_image",
    ),
    Mutation(
        "a family takes whatever weights the hub has today",
        "deploy/families/sdxl-lightning.yaml",
        "revision: 462165984030d82259a11f4367a4eed129e94a7b\n",
        "",
        "tests/load_balancer/runner/test_provenance.py::"
        "test_every_family_that_ships_takes_its_weights_from_the_hub_by_revision",
    ),
    Mutation(
        "a late release deletes the state of the next service",
        "deploy/state.py",
        "        if self.lock.is_current:",
        "        if True:",
        "tests/deploy/test_state.py::test_a_late_release_leaves_the_files_of_the_next_service",
    ),
    Mutation(
        "whatever listens at RAY_ADDRESS is taken for Ray",
        "deploy/preflight.py",
        "and not _speaks_grpc(host, port)",
        "and False",
        "tests/deploy/test_preflight.py::test_a_server_that_is_not_ray_is_not_waited_for",
    ),
    Mutation(
        "an application is built whatever its Redis is",
        "deploy/app.py",
        "if warning := check_redis(service.cache):",
        'if warning := "":',
        "tests/deploy/test_app.py::test_a_server_of_a_redis_cluster_fails_the_deployment",
    ),
    Mutation(
        "the pool keeps its number of replicas whatever an operator says",
        "controller/loop.py",
        "self._size = seen.size or self._configured",
        "self._size = self._configured",
        "tests/controller/test_loop.py::test_more_replicas_are_planned_for_as_they_come_up_and_fewer_at_once",
    ),
    Mutation(
        "all images of a request resume from one state",
        "load_balancer/runner/balancer.py",
        'task if index == 0 else task._replace(cache="off")',
        "task",
        "tests/load_balancer/runner/test_cache_lookup.py::test_of_several_images_of_a_request_only_the_first_resumes",
    ),
    Mutation(
        "a request is not sent again when its load balancer dies",
        "deploy/haproxy.py",
        "conn-failure empty-response response-timeout",
        "none",
        "tests/deploy/test_haproxy.py::test_a_request_whose_load_balancer_dies_is_answered_by_another_one",
    ),
    Mutation(
        "the jobs of a lost load balancer stay lost",
        "load_balancer/shared/shared_state.py",
        "await self._jobs.take_over(record)",
        "pass",
        "tests/load_balancer/shared/test_two_load_balancers.py::"
        "test_the_jobs_of_a_lost_load_balancer_give_the_images_that_they_would_have_given",
    ),
    Mutation(
        "an idempotency key is known at its load balancer only",
        "load_balancer/shared/job_ledger.py",
        "record.number, nx=True,",
        "record.number,",
        "tests/load_balancer/shared/test_two_load_balancers.py::"
        "test_a_key_that_is_repeated_elsewhere_gives_the_same_answer_and_draws_nothing",
    ),
    Mutation(
        "a key has its quota at every load balancer",
        "load_balancer/shared/shared_quotas.py",
        "in_flight = in_flight + tonumber(count)",
        "in_flight = 0",
        "tests/load_balancer/shared/test_two_load_balancers.py::"
        "test_concurrent_images_are_counted_over_all_load_balancers_and_those_of_a_lost_one_end",
    ),
    Mutation(
        "an operator's change holds at one load balancer",
        "load_balancer/shared/shared_state.py",
        "controls.follow(json.loads(kept))",
        "pass",
        "tests/load_balancer/shared/test_two_load_balancers.py::"
        "test_what_an_operator_changes_holds_at_every_load_balancer",
    ),
    Mutation(
        "Ray's GCS is not started again",
        "deploy/cluster.py",
        'if part != "gcs_server":',
        "if True:",
        "tests/deploy/test_cluster.py::test_a_gcs_that_ends_again_and_again_is_given_up_with_the_remedy",
    ),
    Mutation(
        "a front door without load balancers says that there is no such path",
        "deploy/haproxy.py",
        'lambda found: f"{found[1]} {unready}"),',
        "lambda found: found[0]),",
        "tests/deploy/test_haproxy.py::test_without_a_load_balancer_the_front_door_says_that_it_is_not_ready",
    ),
)


def copy(to: Path) -> None:
    """The project as it is here, without what tools left."""
    for entry in REPOSITORY.iterdir():
        if entry.name.startswith(".") or entry.name in ("runs", "__pycache__"):
            continue
        if entry.name in LINKED:
            (to / entry.name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, to / entry.name, ignore=shutil.ignore_patterns("__pycache__", "work"))
        else:
            shutil.copy(entry, to / entry.name)


def passes(folder: Path, test: str) -> bool:
    """Whether a test passes in a copy of the project."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test} did not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> None:
    unnoticed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        for mutation in MUTATIONS:
            file = folder / mutation.file
            text = file.read_text()
            on = passes(folder, mutation.test)
            file.write_text(text.replace(mutation.mechanism, mutation.off))
            off = passes(folder, mutation.test)
            file.write_text(text)
            verdict = "noticed" if on and not off else "NOT NOTICED" if on else "FAILS ANYWAY"
            unnoticed += verdict != "noticed"
            sys.stdout.write(f"{verdict:<12} {mutation.what}\n{'':12} {mutation.test}\n")
            sys.stdout.flush()
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
