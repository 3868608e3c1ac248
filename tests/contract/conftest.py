import pytest

pytest.register_assert_rewrite("contract_checks")
