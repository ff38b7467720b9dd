"""Counts the fields of a serialized message before it is parsed, which holds up all clients of the process."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

Descriptor = Any  # google.protobuf.descriptor.Descriptor, which has no types


def count_fields(data: bytes, descriptor: Descriptor, limit: int) -> int:
    """The fields in ``data`` and in the messages in it; ``limit`` + 1 where there are more. Takes time by the number.

    A packed list of numbers, a string and bytes are one field each, whatever their length. Of data that is no message
    the count ends where that shows.
    """
    count = position = 0
    nested = [(len(data), _messages_of(descriptor))]
    try:
        while nested:
            end, messages = nested[-1]
            if position >= end:
                nested.pop()
                continue
            count += 1
            if count > limit:
                break
            tag, position = _varint(data, position)
            match tag & 7:
                case 0:  # the wire types of protobuf's encoding
                    _, position = _varint(data, position)
                case 1:
                    position += 8
                case 5:
                    position += 4
                case 2:
                    size, position = _varint(data, position)
                    if (inner := messages.get(tag >> 3)) is None:
                        position += size
                    else:
                        nested.append((min(position + size, end), _messages_of(inner)))
                case 3 | 4:  # a group: its fields follow
                    continue
                case _:
                    break
    except IndexError:  # cut off
        return count
    return count


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    position += 1
    if byte < 0x80:
        return byte, position
    value, shift = byte & 0x7F, 7
    for _ in range(9):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, position


@lru_cache(maxsize=512)
def _messages_of(descriptor: Descriptor) -> dict[int, Descriptor]:
    """The messages that are fields of a message, by the number of the field."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}
