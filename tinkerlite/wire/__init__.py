"""The binary side of the protocol: types to protobuf bytes and back. The server uses it too."""

from tinkerlite.wire.codec import (
    PROTOBUF_CONTENT_TYPE,
    WireError,
    decode_forward_backward_output,
    decode_forward_backward_request,
    decode_sample_response,
    encode_forward_backward_output,
    encode_forward_backward_request,
    encode_sample_response,
    forward_backward_parts,
    identify_forward_backward_request,
)

__all__ = [
    "PROTOBUF_CONTENT_TYPE",
    "WireError",
    "decode_forward_backward_output",
    "decode_forward_backward_request",
    "decode_sample_response",
    "encode_forward_backward_output",
    "encode_forward_backward_request",
    "encode_sample_response",
    "forward_backward_parts",
    "identify_forward_backward_request",
]
