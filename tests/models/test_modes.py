"""Modes of modules, and batch norms that keep their statistics, move them, or share them with other ranks."""

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from kdalign.data.batches import collate
from kdalign.models.capture import inference_mode
from kdalign.models.modes import batch_norms, in_mode, keep_statistics, share_statistics, unmoved_statistics
from kdalign.models.profiling import activation_bytes
from kdalign.training.diagnostics import StepViewer, freeze_unreached, gradient_norms, measure_terms
from support.media_setting import IMAGE_TYPES, Setting, new_image_model
from support.ranks import on_ranks

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def resnet():
    return new_image_model(IMAGE_TYPES["resnet"])


def statistics_of(net):
    return [value.clone() for norm in batch_norms(net) for value in norm.buffers()]


def equal(one, other):
    return all(map(torch.equal, one, other))


def test_each_module_gets_its_own_mode_back():
    net = resnet().train()
    keep_statistics(net)
    before = {name: module.training for name, module in net.named_modules()}
    assert set(before.values()) == {True, False}
    for inside in (in_mode(net, training=False), in_mode(net, training=True), inference_mode(net)):
        with inside:
            assert len({module.training for module in net.modules()}) == 1
        assert {name: module.training for name, module in net.named_modules()} == before


def test_with_kept_statistics_a_row_is_normalised_alone_and_without_by_the_rows_that_are_read_with_it():
    net = resnet().train()
    with torch.no_grad():
        together, alone = net(PIXELS).logits[:2], net(PIXELS[:2]).logits
        assert not torch.allclose(together, alone, atol=1e-3)
        keep_statistics(net)
        before = statistics_of(net)
        torch.testing.assert_close(net(PIXELS).logits[:2], net(PIXELS[:2]).logits, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(net(PIXELS).logits, net.eval()(PIXELS).logits, atol=0, rtol=0)
    assert equal(before, statistics_of(net))


def test_unmoved_statistics_change_no_output():
    net = resnet().train()
    before = statistics_of(net)
    with torch.no_grad():
        with unmoved_statistics(net):
            unmoved = net(PIXELS).logits
        assert equal(before, statistics_of(net))
        assert torch.equal(net(PIXELS).logits, unmoved)
    assert not equal(before, statistics_of(net))


def test_measurements_leave_running_statistics_as_they_are():
    setting = Setting("convnext")  # whose student is a ResNet
    learner, net = setting.learner.train(), setting.learner.student
    before, batch = statistics_of(net), collate(setting.data, range(8))

    def teach(one):
        return setting.teacher(one, learner.wanted_of_teacher)

    viewer = StepViewer(learner, teach, Accelerator(cpu=True), 0)
    assert gradient_norms(viewer, net, setting.objective, batch, 0)
    assert measure_terms(viewer, setting.objective, [batch], 0)
    freeze_unreached(learner, teach, setting.objective, setting.data, torch.device("cpu"))
    assert activation_bytes(net, 2, 1) > 0
    assert equal(before, statistics_of(net))
    assert learner.training
    assert all(module.training for module in net.modules())


def test_layers_that_are_computed_again_move_their_statistics_once():
    moved, gradients = [], []
    for recomputes in (False, True):
        setting = Setting("convnext")
        setting.learner.train().recomputes = recomputes
        gradients.append(setting.gradient([collate(setting.data, range(8))]))
        moved.append(statistics_of(setting.learner.student))
    assert equal(*moved)
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def shared():
    """Running means of a rank before and after they are shared."""
    dist.init_process_group("gloo")
    norm = nn.BatchNorm1d(1, momentum=1.0).train()
    norm(torch.tensor([[1.0], [3.0]]) + 10 * dist.get_rank())
    own = norm.running_mean.clone()
    share_statistics(norm)
    found = [torch.zeros(1) for _ in range(2)]
    dist.all_gather(found, norm.running_mean)
    before = [torch.zeros(1) for _ in range(2)]
    dist.all_gather(before, own)
    dist.destroy_process_group()
    return [float(each) for each in (*before, *found)]


def test_ranks_share_the_statistics_of_the_first():
    assert on_ranks(2, shared) == [2.0, 12.0, 2.0, 2.0]
