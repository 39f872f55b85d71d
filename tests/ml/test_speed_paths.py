"""What is faster than the plain way gives what the plain way gives, within rounding. How fast it is, benchmarks tell."""

import pytest

torch = pytest.importorskip("torch")

from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from studio.ml.attention import DocumentsOnCpu, document_attention  # noqa: E402

BF16 = torch.bfloat16


def off(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.detach().double() - truth.detach()).norm() / truth.detach().norm())


@pytest.mark.parametrize("length", [1, 5, 128, 301], ids=lambda length: f"{length} tokens")
@pytest.mark.parametrize("key_heads", [1, 3, 6], ids=lambda heads: f"{heads} of 6 heads")
def test_attention_on_a_processor_has_the_gradients_of_the_exact_one(length: int, key_heads: int):
    torch.manual_seed(length)
    query = (torch.randn(1, 6, length, 16) * 3).to(BF16).requires_grad_()
    key, value = ((torch.randn(1, key_heads, length, 16) * 3).to(BF16).requires_grad_() for _ in range(2))
    outer = torch.randn(1, 6, length, 16).to(BF16)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    truth = scaled_dot_product_attention(*exact, is_causal=True, scale=0.3, enable_gqa=True)
    assert DocumentsOnCpu.takes(query, key, value)
    found = DocumentsOnCpu.apply(query, key, value, [(0, length)], 0.3).transpose(1, 2)
    assert off(found, truth) < 0.01
    for ours, theirs in zip(
        torch.autograd.grad(found, (query, key, value), outer), torch.autograd.grad(truth, exact, outer.double()), strict=True
    ):
        assert (ours.double() - theirs).norm() <= 0.02 * theirs.norm() + 1e-3 * outer.double().norm()


def test_documents_side_by_side_give_the_gradients_that_each_gives_alone():
    torch.manual_seed(0)
    spans = [(0, 7), (7, 40), (40, 41)]
    tensors = [torch.randn(1, heads, 41, 16).to(BF16).requires_grad_() for heads in (4, 2, 2)]
    outer = torch.randn(1, 41, 4, 16).to(BF16)
    together, _ = document_attention(torch.nn.Identity(), *tensors, None, documents=spans)
    grads = torch.autograd.grad(together, tensors, outer)
    for start, end in spans:
        alone = [tensor.detach()[:, :, start:end].requires_grad_() for tensor in tensors]
        single, _ = document_attention(torch.nn.Identity(), *alone, None)
        assert torch.equal(single, together[:, start:end])
        for whole, part in zip(grads, torch.autograd.grad(single, alone, outer[:, start:end]), strict=True):
            torch.testing.assert_close(whole[:, :, start:end], part, rtol=0.02, atol=1e-3)
